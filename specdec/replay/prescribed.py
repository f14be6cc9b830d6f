"""Rates of acceptance from options: a schedule, given rates, a published curve, or a recorded run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specdec.errors import InputError
from specdec.hardware.acceptance import Acceptances
from specdec.runs.read import Run
from specdec.trees.schedules import CHAIN, Rates, given, of_lengths, scheduled
from specdec.trees.topology import IndexPath

GivenRates = str | Sequence[float] | Sequence[Sequence[float]] | None


def prescribed(
    schedule: str,
    tokens_per_step: float,
    paths: Sequence[IndexPath],
    shares: Sequence[float] = CHAIN,
    rates: GivenRates = None,
    lengths: Sequence[float] | None = None,
    where: str = "drafter",
) -> Rates:
    """Return rates of acceptance, [depth][rank].

    Args:
        schedule: see `specdec.trees.schedules.scheduled`, as the next three.
        tokens_per_step: the average of the schedule.
        paths: index paths of the tree's nodes.
        shares: share of each rank.
        rates: rates in place of a schedule, or the folder of a run whose rates are measured.
        lengths: tokens per step of chains of 1, 2, 3, ... tokens in place of a schedule.
        where: option group used in error messages.

    Raises:
        InputError: both `rates` and `lengths`, a run that drafted too little, or as the functions of `schedules`.
    """
    if rates is not None and lengths is not None:
        raise InputError(f"{where}.rates", expected="rates or lengths", got="both", fix="set one of them to null")
    if lengths is not None:
        return of_lengths(lengths, where)
    if isinstance(rates, str):
        return measured(rates, where)
    if rates is not None:
        return given(rates, where)
    return scheduled(schedule, tokens_per_step, paths, shares, where)


def measured(folder: str, where: str = "drafter") -> Rates:
    """Return the rates at which a recorded run accepted, by depth and rank.

    Raises:
        InputError: no run folder, or too few steps.
    """
    if not Path(folder).is_dir():
        expected = "a list of rates, or the folder of a run"
        raise InputError(f"{where}.rates", expected=expected, got=repr(folder), fix="check the path")
    run = Run(Path(folder))
    run.refresh()
    steps = [step for steps in run.texts.values() for step in steps]
    if not any(step.accepted for step in steps):
        fix = "name a run of experiments.bench with a drafter"
        raise InputError(f"{where}.rates", expected="a run that accepted drafts", got=repr(folder), fix=fix)
    return [list(level) for level in Acceptances.of_steps(steps).rates()]
