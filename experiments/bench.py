"""Measure the acceptance rate and the speedup of a drafter on a set of prompts.

python -m experiments.bench drafter=ngram target=smollm2_135m prompts=builtin
python -m experiments.bench -m drafter=none,ngram prompts=jsonl prompts.path=prompts.jsonl
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.common.assembly import assembled, closing, config
from experiments.common.components import instantiate
from experiments.common.entry import CONF, stderr
from experiments.common.objective import objective
from experiments.common.resources import timed
from experiments.common.settings import Settings, settings
from experiments.common.tables import print_path, print_summary, progress_bar
from experiments.common.task import Task
from experiments.pictures.page import REPORT, write_page
from experiments.sweeps.launch import launch
from experiments.sweeps.sweep import label
from specdec.measure.benchmark import Benchmark
from specdec.measure.trials import OURS, Trial
from specdec.replay.record import Recorder
from specdec.replay.trace import TRACE_FILE
from specdec.runs.log import RunLog
from specdec.runs.read import Run


@hydra.main(config_path=CONF, config_name="bench", version_base="1.3")
@Task
def main(cfg: DictConfig) -> float | None:
    options, tracker = settings(cfg), instantiate(cfg.tracker)
    benchmark, names, missing = assembled(cfg, options)
    folder = Path(HydraConfig.get().runtime.output_dir)
    recorder = recording(benchmark, options)
    log = RunLog(folder, tracker, config(cfg, names), label(names))
    with closing(log):
        alone = timed(benchmark.decoder.target.device, options.exclusive, str(folder))
        with alone, progress_bar(benchmark.turns) as advance:
            watch = advance if recorder is None else both(advance, recorder)
            summary = benchmark.run(log, watch).named(names, missing)
        try:
            if recorder is not None:
                file = recorder.trace(names, benchmark.batch_size).write(folder)
                size = file.stat().st_size / 2**20
                stderr.print(f"recorded: {size:.2f} MiB in {file}", soft_wrap=True, highlight=False)
            log.finish(summary.as_dict(), report if options.report else None)
        finally:  # show the figures even if they cannot be written
            print_summary(summary, folder)
    if (folder / REPORT).exists():
        print_path("report", folder / REPORT)
    return objective(vars(summary), options.objective, options.objective_bound)


def report(folder: Path) -> Path:
    """Write the pictures of a run into its folder. Returns the file."""
    return write_page([Run(folder)], folder / REPORT)


def recording(benchmark: Benchmark, options: Settings) -> Recorder | None:
    """Return a recorder and print how large the trace will be, or None if the run is not recorded."""
    if not options.record:
        return None
    decoder = benchmark.decoder
    recorder = Recorder(decoder.drafter, decoder.target, decoder.sampling, decoder.stop, options.record_ranks)
    size = recorder.predicted_bytes(benchmark.turns) / 2**20
    stderr.print(f"recording: {TRACE_FILE} will hold at most {size:.2f} MiB", highlight=False)
    return recorder


def both(advance: Callable[[Trial], None], recorder: Recorder) -> Callable[[Trial], None]:
    """Return a callback that also records each trial: the text is read once more, outside the timed part."""

    def watch(trial: Trial) -> None:
        advance(trial)
        names = {"prompt": trial.prompt.id, "category": trial.prompt.category}
        numbers = {"turn": trial.turn, "repeat": trial.repeat, "batch": trial.batch}
        recorder.add(trial.ids, trial.texts[OURS], **names, **numbers)

    return watch


if __name__ == "__main__":
    launch(main)
