"""Check whether an acceptance rule is exact, by enumerating every random outcome; print the smallest counterexample.

python -m experiments.check_rule acceptance=block
python -m experiments.check_rule --config-dir my_conf acceptance=my_rule 'allow_targets=[my_package.]'
python -m experiments.check_rule function=my_module:verify     # (p, q, draft, uniforms) -> tokens
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.settings import typed
from experiments.common.tables import stdout
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.decoding.protocols import AcceptanceRule
from specdec.errors import InputError
from specdec.exactness.conformance import Outcome, Report, check
from specdec.exactness.functions import FunctionRule
from specdec.files.durable import write_json
from specdec.options import Count
from specdec.runs.log import provenance

MOST_NODES, MOST_TOKENS = 7, 5  # more outcomes than these give take hours


@dataclass
class Options:
    """Options as in conf/check_rule.yaml."""

    function: str | None = None
    nodes: Count = 6
    depth: Count = 4
    vocabularies: list[Count] = field(default_factory=lambda: [3, 4])


@hydra.main(config_path=CONF, config_name="check_rule", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    o = typed(cfg, Options)
    require_small(o)
    torch.set_num_threads(1)  # small tensors
    subject, rule = named(cfg, o)
    report = check(rule, o.nodes, o.depth, o.vocabularies)
    stdout.print(table(subject, report))
    for line in conclusion(rule, report):
        stdout.print(line, soft_wrap=True, highlight=False, markup=False)
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_json(folder / "summary.json", summary(subject, rule, report))
    write_json(folder / "provenance.json", provenance())
    require_exact(subject, rule, report)


def require_small(o: Options) -> None:
    """Refuse sizes whose outcomes cannot be enumerated.

    Raises:
        InputError: names the option.
    """
    limits = [("nodes", o.nodes, MOST_NODES), ("depth", o.depth, MOST_NODES)]
    limits += [("vocabularies", vocab, MOST_TOKENS) for vocab in o.vocabularies]
    for name, value, most in limits:
        least = 2 if name == "vocabularies" else 1
        if not least <= value <= most:
            raise InputError(name, expected=f"{least} to {most}", got=value, fix="outcomes grow as their power")
    if not o.vocabularies:
        raise InputError("vocabularies", expected="at least one", got="none", fix="try [3, 4]")


def named(cfg: DictConfig, o: Options) -> tuple[str, AcceptanceRule | FunctionRule]:
    """Return the rule that the config names, and how.

    Raises:
        InputError: no rule, two, or a function that is not named on the command line.
    """
    rule = cfg.get("acceptance")
    if (rule is None) == (o.function is None):
        got = "neither" if rule is None else "both"
        raise InputError(
            "acceptance", expected="a rule or a function", got=got, fix="pass acceptance=... or function=..."
        )
    if o.function is None:
        return f"acceptance={HydraConfig.get().runtime.choices['acceptance']}", instantiate(rule)
    if f"function={o.function}" not in HydraConfig.get().overrides.task:
        fix = "pass function=... on the command line, because it runs code of yours"
        raise InputError("function", expected="a name on the command line", got="one from a file", fix=fix)
    return f"function={o.function}", FunctionRule(function_of(o.function), f"function={o.function}")


def function_of(name: str) -> Callable[..., Any]:
    """Import `module:name`; modules of the current folder are found too.

    Raises:
        InputError: no such module or function.
    """
    module, _, attribute = name.partition(":")
    fix = "write module:name, and run the command in the module's folder"
    if not module or not attribute:
        raise InputError("function", expected="module:name", got=repr(name), fix=fix)
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), attribute, None)
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise InputError("function", expected=f"a module {module!r} that can be imported", got=got, fix=fix) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise InputError("function", expected=f"a function {attribute!r} in {module!r}", got="none", fix=fix)
    return found


def table(subject: str, report: Report) -> Table:
    """Show one row per way of choosing children and number of drafted nodes."""
    out = Table(title=subject, title_justify="left")
    for column in ("children", "drafted\nnodes", "cases", "outcomes", "total\nvariation", "accepted*", "bound*"):
        out.add_column(column, justify="left" if column == "children" else "right")
    groups: dict[tuple[str, int], list[Outcome]] = {}
    for one in report.outcomes:
        groups.setdefault((one.case.how, one.case.nodes), []).append(one)
    for (how, nodes), of_group in sorted(groups.items()):
        both = [one for one in of_group if one.bound is not None and one.accepted is not None]
        accepted, bound = (
            f"{sum(getattr(one, name) for one in both) / len(both):.4f}" if both else "-"
            for name in ("accepted", "bound")
        )
        total = f"{sum(one.outcomes for one in of_group):,}"
        variation = f"{max(one.variation for one in of_group):.1e}"
        out.add_row(how, str(nodes), str(len(of_group)), total, variation, accepted, bound)
    return out


def conclusion(rule: AcceptanceRule | FunctionRule, report: Report) -> list[str]:
    """Return the verdict in words."""
    note = "* mean expected tokens of the mirrored and random cases; bound: optimal transport, p known at every text"
    if report.failure:
        return [note, f"CANNOT BE JUDGED: {report.failure}"]
    if report.exact:
        total = sum(one.outcomes for one in report.outcomes)
        return [note, f"EXACT on {len(report.outcomes):,} cases, {total:,} outcomes"]
    label = "NOT EXACT" if rule.lossless else "LOSSY, as it declares"
    return [
        note,
        f"{label}: total variation up to {report.variation:.4g}. Smallest counterexample: {report.counterexample}",
    ]


def summary(subject: str, rule: AcceptanceRule | FunctionRule, report: Report) -> dict[str, Any]:
    """Return the results for `summary.json`."""
    rows = [
        {
            "children": one.case.how, "parents": list(one.case.parents), "vocabulary": one.case.vocab,
            "kind": one.case.kind, "steps": one.case.steps, "outcomes": one.outcomes, "difference": one.difference,
            "total_variation": one.variation, "accepted": one.accepted, "bound": one.bound,
        }
        for one in report.outcomes
    ]  # fmt: skip
    counterexample = None if report.counterexample is None else str(report.counterexample)
    head = {"subject": subject, "declared_lossless": rule.lossless, "exact": report.exact, "failure": report.failure}
    return {**head, "total_variation": report.variation, "counterexample": counterexample, "cases": rows}


def require_exact(subject: str, rule: AcceptanceRule | FunctionRule, report: Report) -> None:
    """Fail if a rule cannot be judged, or declares itself lossless and is not. A lossy rule passes.

    Raises:
        InputError: names the counterexample.
    """
    expected = "a rule that keeps the target's distribution"
    if report.failure:
        raise InputError(subject, expected=expected, got=report.failure, fix="mend it")
    if rule.lossless and not report.exact:
        raise InputError(subject, expected=expected, got=str(report.counterexample), fix="mend it, or label it lossy")


if __name__ == "__main__":
    launch(main)
