"""Collect the texts of a run step by step, with the writer of each token. `assets/reader.js` shows them."""

from __future__ import annotations

from typing import Any

from specdec.runs.read import Run, TextKey

MOST_TOKENS = 30_000  # in all texts together, so that a page stays small


def reader(run: Run) -> dict[str, Any] | None:
    """Return the texts that can be shown token by token, or None if there are none.

    They have at most `MOST_TOKENS` tokens together, the same share of each category. A step is [accepted, emitted,
    drafted nodes, depth offered, kind of the last token, ms, rows].
    """
    texts: dict[str, list[dict[str, Any]]] = {}
    for generation in run.generations:
        try:
            text = _text(run, generation)
        except (KeyError, TypeError):  # written by an older version
            continue
        if text is not None:
            texts.setdefault(generation["category"], []).append(text)
    kept: list[dict[str, Any]] = []
    tokens, total = 0, sum(map(len, texts.values()))
    for place in range(max(map(len, texts.values()), default=0)):
        for of_category in texts.values():
            if place < len(of_category) and (not kept or tokens + len(of_category[place]["pieces"]) <= MOST_TOKENS):
                kept.append(of_category[place])
                tokens += len(of_category[place]["pieces"])
    return {"texts": kept, "total": total} if kept else None


def _text(run: Run, generation: dict[str, Any]) -> dict[str, Any] | None:
    key = TextKey(str(generation["prompt"]), str(generation["category"]), generation["turn"], generation["repeat"])
    records, pieces = run.texts.get(key, []), [str(piece) for piece in generation["pieces"]]
    if len(pieces) != 1 + sum(record.emitted for record in records):
        return None  # steps are missing or belong to another run
    turn = f", turn {key.turn + 1}" if key.turn else ""
    repeat = f", repeat {key.repeat + 1}" if key.repeat else ""
    return {
        "name": f"{key.category}: {key.prompt}{turn}{repeat}",
        "prompt": str(generation["prompt_text"]),
        "pieces": pieces,
        "steps": [
            [r.accepted, r.emitted, r.nodes, r.offered, r.closing, round(sum(r.ms.values()), 2), r.live]
            for r in records
        ],
    }
