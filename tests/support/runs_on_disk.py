"""Run folders for tests, written by the run log itself."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from specdec.metrics import StepMetrics, StepRecord
from specdec.runs.log import NoTracker, RunLog, TrainLog

SCRIPT = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'> & \"done\""
CATEGORIES = ("math", "<b>bold</b>")
PARENTS = [-1, 0, 0, 1, 1, 3]  # depths 0 1 1 2 2 3
PATHS = ([0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 4], [0, 1, 3, 5])


def steps_of_a_text(steps: int, seed: int) -> list[StepRecord]:
    draw = random.Random(seed)
    records = []
    for step in range(1, steps + 1):
        path = draw.choice(PATHS)
        emitted = len(path)
        ms = {"draft": 1.0, "verify": 20.0 + draw.random(), "accept": 0.5, "commit": 0.25}
        records.append(
            StepRecord(0, step, 1, 5, 3, emitted - 1, emitted, path, [draw.randrange(99)] * emitted, ms, PARENTS)
        )
    return records


def begin(folder: Path, drafter: str = "ngram", target: str = "tiny") -> RunLog:
    return RunLog(folder, NoTracker(), {"names": {"drafter": drafter, "target": target}})


def add_text(log: RunLog, number: int, steps: int = 12) -> list[StepRecord]:
    """One text with its steps."""
    category = CATEGORIES[number % 2]
    where = {"prompt": f"q{number}", "category": category, "turn": 0, "repeat": 0}
    records = steps_of_a_text(steps, number)
    pieces = [f" w{i}" for i in range(1 + sum(record.emitted for record in records))]
    log.steps(records, [where])
    text = {"text": "".join(pieces), "pieces": pieces, "prompt_text": SCRIPT, "identical": True}
    log.generations([{**where, **text, "seconds": {"speculative": 1.0, "autoregressive": 2.0}}])
    return records


def summary_of(texts: dict[str, list[StepRecord]], **names: Any) -> dict[str, Any]:
    """A summary as the benchmark writes it, with speeds made up. texts: records by category."""

    def figures(records: list[StepRecord]) -> dict[str, Any]:
        speeds = {"tokens_per_second": 20.0, "autoregressive_tokens_per_second": 10.0}
        divergence = {"identical": 2, "total": 2, "prompts": []}
        ratio = {"speedup": 2.0, "speedup_ci95": [1.5, 2.5], "divergence": divergence}
        return {"prompts": 2, **StepMetrics.of(records).as_dict(), **speeds, **ratio}

    whole = figures([record for records in texts.values() for record in records])
    head = {"acceptance": "exact", "lossless": True, "dtype": "float32", "threads": 1, "bandwidth_share": 0.5, **names}
    return {**head, **whole, "by_category": {name: figures(records) for name, records in texts.items()}}


def finished(
    folder: Path, drafter: str = "ngram", target: str = "tiny", texts: int = 4, options: Any = None
) -> dict[str, Any]:
    """A whole run; returns its summary. options: what `.hydra/config.yaml` holds."""
    log = begin(folder, drafter, target)
    by_category: dict[str, list[StepRecord]] = {}
    for number in range(texts):
        by_category.setdefault(CATEGORIES[number % 2], []).extend(add_text(log, number))
    summary = summary_of(by_category, drafter=drafter, target=target)
    log.finish(summary)
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(options or {}), "utf-8")  # JSON is YAML
    return summary


def begin_training(folder: Path) -> TrainLog:
    return TrainLog(folder, NoTracker(), {"names": {"drafter": "medusa", "target": "tiny"}})


def add_reports(log: TrainLog, steps: Iterable[int]) -> None:
    for step in steps:
        if step:
            log.report(step, {"loss": 5.0 / step, "top1/head0": step / 100, "learning_rate": 1e-3})
        log.report(step, {"validation/loss": 6.0 / (step + 1), "tokens_per_step": 1 + step / 40})


def training(folder: Path) -> None:
    """A whole training run."""
    log = begin_training(folder)
    add_reports(log, range(0, 21, 5))
    log.finish({"drafter": "medusa", "target": "tiny", "tokens_per_step": 1.5, "tokens_per_second": 900.0})
