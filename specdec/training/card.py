"""The model card of a trained drafter, `README.md` in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def card(
    names: Mapping[str, str],
    tokens: int,
    figures: Mapping[str, Any],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> str:
    """Return the card in Markdown.

    Args:
        names: names of the target, the drafter and the recipe.
        tokens: answer tokens it was trained on, every epoch counted.
        figures: last figures of training and validation; only numbers are shown.
        config: options that the results depend on.
        provenance: provenance of the run (`specdec.runs.provenance`).
    """
    command = " ".join(["python", *map(str, provenance["command"][1:])])
    commit, changed = provenance["commit"] or "unknown", " with uncommitted changes" if provenance["changes"] else ""
    machine = ", ".join(provenance["machine"]["gpu"]) or provenance["machine"]["cpu"]
    shown = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in shown.items())
    options = json.dumps({k: v for k, v in config.items() if k != "allow_targets"}, indent=2, ensure_ascii=False)
    return f"""# {names["drafter"]} for {names["target"]}

A drafter for speculative decoding, in the format of `drafter={names["drafter"]}`.
It serves the target that it was trained on, and no other.

## Training

Recipe `{names["recipe"]}`, {tokens:,} answer tokens, on {machine}.
Commit {commit}{changed}.

```
{command}
```

The last figures, on the training and validation text of `data`:

| figure | value |
| --- | --- |
{rows}

## Options

```json
{options}
```
"""
