"""The options of each entry point's run, and what must be true of its folder whatever happened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.training.text.store import TextStore

SHORT = ["target=tiny", "target.device=cpu", "tracker=none", "report=false"]
BENCH = [*SHORT, "generation.max_new_tokens=6", "prompts.limit=2"]
TEXT = ["target=tiny", "target.device=cpu", "answers.max_new_tokens=8", "prompts=jsonl", "features=[hidden]"]
TRAIN = [
    "target=tiny", "target.device=cpu", "tracker=none", "drafter=medusa", "recipe.heads=1", "training.epochs=1",
    "training.batch_size=16", "reports.checkpoint_every=1", "reports.evaluate_every=100", "measure.prompts=1",
    "measure.max_new_tokens=4",
]  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """An entry point's run in a folder.

    Args:
        entry: the entry point.
        arguments: its command line, given the folder and that of the prepared inputs.
        kills: how many points it is killed at.
        result: what the finished run left, without times; it is the same after a kill and another run.
    """

    entry: str
    arguments: Callable[[Path, Path], list[str]]
    kills: int
    result: Callable[[Path], Any]


def _summary(folder: Path) -> Any:
    found = json.loads((folder / "summary.json").read_text("utf-8"))
    return {key: found.get(key) for key in ("tokens", "steps", "tokens_per_step", "acceptance_at_depth")}


def _recorded(folder: Path) -> Any:
    return _summary(folder), (folder / "trace.npz").stat().st_size > 0


def _sweep(folder: Path) -> Any:
    return [_summary(folder / job) for job in ("0", "1")]


def _texts(folder: Path) -> Any:
    store = TextStore(folder / "text")
    return sorted((text.key, text.sample, store.tokens(text).tolist()) for text in store.texts)


def _drafter(folder: Path) -> Any:
    files = sorted((folder / "run" / "drafter").glob("*.safetensors"))
    assert files
    assert (folder / "run" / "summary.json").exists()
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def _heads(folder: Path) -> Any:
    return sorted(path.name for path in (folder / "heads").iterdir())


SCENARIOS = {
    "bench": Scenario("bench", lambda f, i: [f"hydra.run.dir={f}/run", *BENCH], 14, lambda f: _summary(f / "run")),
    "record": Scenario(
        "bench", lambda f, i: [f"hydra.run.dir={f}/run", *BENCH, "record=true"], 8, lambda f: _recorded(f / "run")
    ),
    "sweep": Scenario(
        "bench",
        lambda f, i: ["-m", f"hydra.sweep.dir={f}/run", *BENCH, "drafter=none,ngram"],
        8,
        lambda f: _sweep(f / "run"),
    ),
    "train": Scenario(
        "train", lambda f, i: [f"folder={f}/run", f"data={i}/text", *TRAIN], 14, _drafter,
    ),
    "self_distill": Scenario(
        "self_distill",
        lambda f, i: [f"hydra.run.dir={f}/log", f"folder={f}/text", f"prompts.path={i}/prompts.jsonl", *TEXT],
        10,
        _texts,
    ),
    "simulate": Scenario(
        "simulate",
        lambda f, i: [f"hydra.run.dir={f}/run", f"run={i}/recorded"],
        6,
        lambda f: json.loads((f / "run" / "summary.json").read_text("utf-8"))["tokens_per_step"],
    ),
    "convert_heads": Scenario(
        "convert_heads",
        lambda f, i: [f"hydra.run.dir={f}/run", f"heads={i}/heads", f"output={f}/heads"],
        6,
        _heads,
    ),
}  # fmt: skip


def require_whole_files(folder: Path) -> None:
    """Every JSON file is whole, and so is every line of JSON but a last one that is cut."""
    for file in folder.rglob("*.json"):
        if not unfinished(file, folder):
            json.loads(file.read_text("utf-8"))
    for file in folder.rglob("*.jsonl"):
        for line in file.read_text("utf-8").split("\n")[:-1]:
            json.loads(line)


def unfinished(file: Path, folder: Path) -> bool:
    return any(part.endswith(".unfinished") for part in file.relative_to(folder).parts)


def copies(folder: Path, name: str) -> Iterator[str]:
    """The texts of all files of a name below a folder."""
    for file in sorted(folder.rglob(name)):
        yield file.read_text("utf-8")
