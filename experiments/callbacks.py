"""Hydra callbacks: the table and the report that compare the jobs of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.pictures.page import REPORT, write_page
from experiments.tables import comparison, print_path, stdout
from specdec.runs import find_runs


class CompareJobs(Callback):
    """After a `-m` sweep, one table and one report over the summaries of its jobs, named by what they overrode."""

    def __init__(self) -> None:
        self._summaries: dict[str, dict[str, Any]] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        assert job_return.hydra_cfg is not None
        hydra_cfg = job_return.hydra_cfg.hydra
        file = Path(hydra_cfg.runtime.output_dir) / "summary.json"
        if file.exists():
            self._summaries[hydra_cfg.job.override_dirname or str(file.parent)] = json.loads(file.read_text("utf-8"))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        common = (
            set.intersection(*(set(name.split(",")) for name in self._summaries)) if len(self._summaries) > 1 else set()
        )
        short = {
            ",".join(part for part in name.split(",") if part not in common) or name: s
            for name, s in self._summaries.items()
        }
        if short:
            stdout.print(comparison(short, "job"))
            folder = Path(config.hydra.sweep.dir)
            print_path("sweep folder", folder)
            if config.report:
                print_path("report", write_page(find_runs([folder]), folder / REPORT))
