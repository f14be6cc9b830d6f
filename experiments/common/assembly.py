"""Build a benchmark from a config, and close its log if the run dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.common.components import instantiate
from experiments.common.entry import stderr
from experiments.common.objective import check_objective
from experiments.common.settings import Settings
from specdec.decoding.decoder import Decoder
from specdec.measure.benchmark import Benchmark
from specdec.measure.rivals import runnable
from specdec.notes import counted
from specdec.runs.log import RunLog


def assembled(cfg: DictConfig, options: Settings) -> tuple[Benchmark, dict[str, str], dict[str, str]]:
    """Build the benchmark of a config, and check it.

    Returns:
        The benchmark; the names of its parts; and per reference that cannot run here, the reason.
    """
    prompts = instantiate(cfg.prompts)
    target = instantiate(cfg.target)
    methods = instantiate(cfg.reference.methods, _convert_="all")
    references, missing = runnable(methods, target, options.sampling())
    drafter, choices = instantiate(cfg.drafter, _convert_="all"), HydraConfig.get().runtime.choices
    if options.tree == "adaptive":
        drafter = instantiate(cfg.adaptive)(drafter)
    verifier, rule = instantiate(cfg.verifier, target=target), instantiate(cfg.acceptance)
    benchmark = Benchmark(
        decoder=Decoder(drafter, verifier, rule, options.sampling(), options.stop_rule(target)),
        prompts=prompts,
        batch_size=options.generation.batch_size,
        repeats=options.repeats,
        seeds=options.seeds or [options.seed],
        references=references,
        validate=options.validate,
        repeat_disturbed=options.repeat_disturbed,
    ).fitting()
    benchmark.check()
    samples = -(-len(prompts) // benchmark.batch_size) * len(benchmark.seeds)
    check_objective(options.objective, options.objective_bound, samples)
    names = {
        "target": target.name,
        **{group: choices[group] for group in ("drafter", "verifier")},
        "tree": options.tree,
    }
    return benchmark, names, missing


@contextmanager
def closing(log: RunLog) -> Iterator[None]:
    """Keep the finished steps if the run dies, and print where they are."""
    try:
        yield
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        log.stop(status)
        kept = f"{counted(log.steps_written, 'step')} {'is' if log.steps_written == 1 else 'are'} kept"
        stderr.print(f"{status}: {kept} in {log.folder / 'steps.jsonl'}", soft_wrap=True)
        raise


def config(cfg: DictConfig, names: dict[str, str]) -> dict[str, Any]:
    """Return the run's configuration for trackers, with the names of its parts."""
    return {"names": names, **OmegaConf.to_container(cfg, resolve=True)}  # type: ignore[dict-item]
