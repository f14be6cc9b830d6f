"""Train a drafter on text that its target wrote.

python -m experiments.train drafter=medusa data=data/smollm2
accelerate launch --num_processes 8 -m experiments.train drafter=medusa target=hf target.name=... data=...
"""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.objective import BOUNDS, check_objective, objective
from experiments.common.progress import progress, say
from experiments.common.resources import timed
from experiments.common.settings import typed
from experiments.common.signals import Stopped, deferred
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from experiments.sweeps.sweep import label
from specdec.decoding.decoder import Decoder
from specdec.decoding.protocols import AcceptanceRule, Drafter, Verifier
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.measure.worth import worth_of
from specdec.metrics import StepMetrics
from specdec.model.load import resolve_device
from specdec.model.target import TargetModel
from specdec.options import Count, Natural
from specdec.runs.log import TrainLog
from specdec.training.card import card
from specdec.training.checkpoints import Checkpoints
from specdec.training.processes import process_group_ends
from specdec.training.recipe import Recipe
from specdec.training.saving import save_drafter
from specdec.training.schedule import Reports, Schedule
from specdec.training.text.store import TextStore
from specdec.training.trainer import Measure, Trainer

# options that may change when a run is resumed; the content of the data, not its place, must stay the same
FREE_TO_CHANGE = ("tracker", "folder", "keep", "data", "sweep", "exclusive", "objective", "objective_bound")


@dataclass
class Measurement:
    """The option `measure`, as in conf/train.yaml."""

    prompts: Natural
    max_new_tokens: Count


@dataclass
class Options:
    """Options as in conf/train.yaml."""

    data: str
    folder: str
    measure: Measurement
    keep: Count
    precision: str
    objective: str = "tokens_per_step"
    objective_bound: str = BOUNDS[0]
    exclusive: bool = True
    training: Schedule = field(default_factory=Schedule)
    reports: Reports = field(default_factory=Reports)


@hydra.main(config_path=CONF, config_name="train", version_base="1.3")
@Task
def main(cfg: DictConfig) -> float | None:
    with process_group_ends():
        return run(cfg)


def run(cfg: DictConfig) -> float | None:
    """Train in this process as the config says. Returns the objective."""
    options = checked(cfg)
    folder, tracker = run_folder(options), instantiate(cfg.tracker)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # hides its notes on every checkpoint
    recipe = instantiate(cfg.recipe, _convert_="all")
    store = TextStore(Path(options.data))
    cpu = resolve_device(cfg.target.get("device", "auto")).type == "cpu"
    kind = precision(options.precision, cpu)
    if kind == "tf32":
        torch.set_float32_matmul_precision("high")
    accelerator = Accelerator(cpu=cpu, mixed_precision="no" if kind == "tf32" else kind)
    target = target_of(cfg, recipe)
    prompts = validation_prompts(store, options.measure.prompts)
    check_objective(options.objective, options.objective_bound, len(prompts))
    verifier, rule = instantiate(cfg.verifier, target=target), instantiate(cfg.acceptance)
    stop = StopRule(options.measure.max_new_tokens, target.eos)
    measure = tokens_per_step(prompts, verifier, rule, stop)
    trainer = Trainer(recipe, target, store, options.training, options.reports, accelerator, measure)

    checkpoints = Checkpoints(folder, accelerator, run_config(cfg, store), options.keep)
    begun = checkpoints.latest or 0
    names = {group: HydraConfig.get().runtime.choices[group] for group in ("target", "drafter", "recipe")}
    log = None
    if accelerator.is_main_process:
        config = {"names": names, **run_config(cfg, store)}
        log = TrainLog(folder, tracker, config, begun, label(names))
        say(f"{'resumed' if begun else 'begun'} at step {begun} of {trainer.steps}: {len(trainer.training):,} texts")
    try:
        with progress("steps", trainer.steps - begun) as advance:
            figures = run_steps(trainer, checkpoints, log, lambda words: advance(1, words))
        module = trainer.plain_module()
        if log is not None and module is not None:
            text = card(names, trainer.tokens, figures, run_config(cfg, store), log.provenance)
            save_drafter(recipe, module, target, folder / "drafter", trainer.tokens, text)
            memory = {"peak_memory_mb": peak_memory_mb(accelerator.device)}
            if prompts and (options.objective, options.objective_bound) != ("tokens_per_step", BOUNDS[0]):
                with timed(target.device, options.exclusive, str(folder)):
                    drafter = recipe.drafter(module.eval(), target)
                    figures["worth"] = worth_of(prompts, Decoder(drafter, verifier, rule, SamplingParams(), stop))
            log.finish({**names, "steps": trainer.steps, **figures, **memory}, {"drafter": folder / "drafter"})
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if log is not None:
            log.stop(status)
            again = f": run the same command again to go on at step {checkpoints.latest or 0}"
            say(status + ("" if isinstance(error, InputError) else again))  # an input error contains its own advice
        raise
    if log is not None:
        say("  ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float)))
        say(f"drafter: {folder / 'drafter'}")
    # without `worth`, tokens_per_second in the figures is the speed of training
    return objective(figures.get("worth", figures), options.objective, options.objective_bound)


def run_folder(options: Options) -> Path:
    """Return the run's folder. In a sweep it is the job's own folder, because all jobs would share `folder`.

    Raises:
        InputError: `folder` was set in a sweep.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return Path(options.folder)
    if said := [override for override in hydra.overrides.task if override.startswith("folder=")]:
        raise InputError(
            "folder", expected="none in a sweep: each job trains in its own", got=said[0],
            fix="name the sweep's folder with hydra.sweep.dir=...",
        )  # fmt: skip
    return Path(hydra.runtime.output_dir)


def target_of(cfg: DictConfig, recipe: Recipe) -> TargetModel:
    """Return the target. If the recipe trains parts of it, `runtime=auto` becomes the stock runtime."""
    if recipe.live and cfg.target.get("runtime") == "auto":
        say("target.runtime: stock, because the recipe trains parts of the target")
        return instantiate(cfg.target, runtime="stock")
    return instantiate(cfg.target)


def run_steps(
    trainer: Trainer, checkpoints: Checkpoints, log: TrainLog | None, on_step: Callable[[str], None]
) -> dict[str, Any]:
    """Run all steps that are left.

    At the first signal the current step is finished and a checkpoint is written. The second signal stops at once. A
    signal after the last step also ends the run, because the rest may take long; it is done when the run is resumed.

    Args:
        trainer: runs the steps.
        checkpoints: where to save.
        log: where to log; None in processes that do not log.
        on_step: called with a few words after each step.
    """
    with deferred() as stopped:
        try:
            figures = trainer.run(checkpoints, log, on_step, stopped)
        except KeyboardInterrupt as error:
            if isinstance(error, Stopped) or (number := stopped()) is None:
                raise
            raise Stopped(number) from error
        if (number := stopped()) is not None:  # it came after the last step
            raise Stopped(number)
        return figures


def validation_prompts(store: TextStore, count: int) -> list[list[int]]:
    """Return the token ids of the first prompts of the validation split."""
    return [store.tokens(text)[: text.answers[0][0]].tolist() for text in store.validation[:count]]


def tokens_per_step(prompts: list[list[int]], verifier: Verifier, rule: AcceptanceRule, stop: StopRule) -> Measure:
    """Return a function that measures a drafter by greedy decoding.

    Args:
        prompts: token ids.
        verifier: scores the trees.
        rule: judges the trees.
        stop: when a text ends.
    """

    def measure(drafter: Drafter) -> Mapping[str, float]:
        if not prompts:
            return {}
        seeds = [[0, row] for row in range(len(prompts))]
        done = Decoder(drafter, verifier, rule, SamplingParams(), stop).speculative(prompts, seeds)
        metrics = StepMetrics.of(done.steps)
        at_depth = {f"acceptance_at_depth/{d}": rate for d, rate in enumerate(metrics.acceptance_at_depth, 1)}
        return {"tokens_per_step": metrics.tokens_per_step or 1.0, **at_depth}

    return measure


def run_config(cfg: DictConfig, store: TextStore) -> dict[str, Any]:
    """Return everything that the results depend on: the config, and the content of the data (not its place)."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    texts, tokens = len(store.texts), sum(text.tokens for text in store.texts)
    data = {"target": store.origin.target, "weights": store.origin.weights, "texts": texts, "tokens": tokens}
    return {**{key: value for key, value in plain.items() if key not in FREE_TO_CHANGE}, "data": data}


def precision(name: str, cpu: bool) -> str:
    known = ("auto", "no", "tf32", "bf16", "fp16")
    if name not in known:
        raise InputError("precision", expected=f"one of {', '.join(known)}", got=repr(name), fix="use precision=auto")
    if name != "auto":
        return name
    return "bf16" if not cpu and torch.cuda.is_bf16_supported() else "no"


def peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def checked(cfg: DictConfig) -> Options:
    """Return the typed part of the config, checked before anything is loaded.

    Raises:
        InputError: a value of the wrong type or out of range.
    """
    return typed(cfg, Options)


if __name__ == "__main__":
    launch(main)
