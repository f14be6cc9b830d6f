"""Draw a training run: every figure of its reports over the steps."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.common.escape import words
from experiments.pictures.picture import Picture, Table
from experiments.pictures.style import PALETTE, SYMBOLS, axis, drafter_style, figure
from specdec.runs.read import Run

MOST_POINTS = 500
TITLES = {
    "tokens_per_step": ("Tokens per step over training", "tokens per step τ"),
    "acceptance_at_depth": ("Acceptance by depth over training", "acceptance (probability)"),
    "loss": ("Loss", "loss (nats)"),
    "top1": ("First guess right", "share of tokens (ratio)"),
    "top5": ("Right among the first five guesses", "share of tokens (ratio)"),
    "learning_rate": ("Learning rate", "learning rate (per step)"),
    "grad_norm": ("Gradient norm", "norm of the gradient (loss per weight)"),
    "tokens_per_second": ("Training speed", "training tokens/s"),
    "product_share": ("Share of the machine's products", "share of the fastest product (ratio)"),
}
FROM_ZERO = (
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "product_share",
)  # axes from 0 even if the figure hardly changes


def pictures(labelled: Mapping[str, Run]) -> list[Picture]:
    """Return one picture per kind of figure, the most important first.

    "top1/head0" and "validation/top1/head0" are of one kind.
    """
    kinds: dict[str, dict[str, tuple[Run, list[tuple[int, float]]]]] = {}
    for label, run in labelled.items():
        for report in run.training:
            for name, value in report.items():
                if name != "step" and isinstance(value, int | float) and isinstance(report.get("step"), int):
                    kind = name.removeprefix("validation/").partition("/")[0]
                    line = name if len(labelled) == 1 else f"{label}: {name}"
                    kinds.setdefault(kind, {}).setdefault(line, (run, []))[1].append((report["step"], value))
    known = [kind for kind in TITLES if kind in kinds]
    return [_curve(kind, kinds[kind], len(labelled)) for kind in [*known, *(k for k in kinds if k not in known)]]


def _curve(kind: str, lines: Mapping[str, tuple[Run, list[tuple[int, float]]]], runs: int) -> Picture:
    title, unit = TITLES.get(kind, (kind.replace("_", " ").capitalize(), kind.replace("_", " ")))
    mode = "tozero" if kind in FROM_ZERO else "normal"
    drawn = figure(axis("training step", rangemode="tozero"), axis(words(unit), rangemode=mode), height=340)
    rows: list[list[str | int | float]] = []
    figures = list(dict.fromkeys(name.replace("validation/", "") for name in lines))
    for name, (run, points) in lines.items():
        place = figures.index(name.replace("validation/", ""))
        points = points[:: -(-len(points) // MOST_POINTS)]
        alone = runs > 1 and len(lines) == runs  # one line per run, so the colour can be that of the drafter
        colour = drafter_style(run.names["drafter"])[0] if alone else PALETTE[place % len(PALETTE)]
        steps, values = [step for step, _ in points], [value for _, value in points]
        drawn.add_scatter(
            x=steps,
            y=values,
            mode="lines+markers" if len(points) < 60 else "lines",
            name=words(name),
            showlegend=len(lines) > 1,
            line={"color": colour, "width": 2.2, "dash": "dot" if "validation/" in name else "solid"},
            marker={"size": 6, "symbol": SYMBOLS[place // len(PALETTE) % len(SYMBOLS)]},
            hovertemplate="step %{x}: %{y:.4g}<extra>" + words(name) + "</extra>",
        )
        rows += [[name, step, value] for step, value in points]
    table = Table(("figure", "training step", unit), rows)
    both = any("validation/" in name for name in lines)
    says = "Dotted: on validation texts." if both else "As reported while training."
    return Picture(f"training_{kind}", title, says, drawn, table)
