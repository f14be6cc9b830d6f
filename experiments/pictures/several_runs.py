"""The pictures that compare runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.common.escape import words
from experiments.common.tables import identical
from experiments.pictures.picture import Picture, Table, bars
from experiments.pictures.style import GREY, SCALE, axis, drafter_style, figure
from specdec.runs.read import Run

UNCOMPARED = ("tracker", "hydra", "reference", "report")  # options that change neither text nor speed
MOST_PARAMETERS = 6

Labelled = Mapping[str, Run]


def labels(runs: Sequence[Run]) -> dict[str, Run]:
    """Give each run a short name: the drafter, then the options that differ, then the folder if still needed."""
    differing = parameters(runs)
    names = []
    for run in runs:
        own = [f"{key.rpartition('.')[2]}={run.options[key]}" for key in differing if key in run.options]
        names.append(" ".join([run.names["drafter"], *own]))
    return {
        name if names.count(name) == 1 else f"{name} ({'/'.join(run.folder.parts[-2:])})": run
        for name, run in zip(names, runs, strict=True)
    }


def parameters(runs: Sequence[Run]) -> list[str]:
    """Return the options that differ between the runs that have them, without the choice of the drafter."""
    keys = dict.fromkeys(key for run in runs for key in run.options)
    return [
        key
        for key in keys
        if key.partition(".")[0] not in UNCOMPARED
        and not key.endswith("_target_")
        and len({str(run.options[key]) for run in runs if key in run.options}) > 1
    ][:MOST_PARAMETERS]


def table(labelled: Labelled) -> Table:
    """Return the table with one run per row; intervals are 95 %."""
    columns = (
        "run",
        "target",
        "status",
        "prompts",
        "τ (tokens per step)",
        "acceptance rate",
        "nodes (per step)",
        "tokens/s",
        "speedup",
        "95 % from",
        "to",
        "texts identical",
        "rule",
    )
    rows = []
    for label, run in labelled.items():
        f = run.figures
        same = identical(f).partition(" ")[0] if f.divergence or f.temperature else None
        loss = "lossless" if f.lossless else "lossy"
        rule = None if f.acceptance is None or f.lossless is None else f"{f.acceptance} ({loss})"
        rows.append(
            [
                label,
                run.names["target"],
                run.status,
                f.prompts,
                f.tokens_per_step,
                f.acceptance_rate,
                f.nodes_per_step,
                f.tokens_per_second,
                f.speedup,
                *(f.speedup_ci95 or (None, None)),
                same,
                rule,
            ]
        )
    return Table(columns, rows)


def pictures(labelled: Labelled) -> list[Picture]:
    """Return all pictures that compare the runs. Pictures without data are left out."""
    return list(_pictures(labelled))


def _pictures(labelled: Labelled) -> Iterator[Picture]:
    timed = {label: run for label, run in labelled.items() if run.figures.speedup is not None}
    for name, axis_title, key, says in (
        (
            "tau",
            "tokens per step τ",
            "tokens_per_step",
            "What acceptance is worth: above the dashed line drafting pays.",
        ),
        ("nodes", "drafted nodes per step", "nodes_per_step", "What a larger tree costs and brings."),
    ):
        points = {label: run for label, run in timed.items() if getattr(run.figures, key) is not None}
        if points:
            title = f"Speedup against {'τ' if name == 'tau' else 'drafted nodes'}"
            places = [getattr(run.figures, key) for run in points.values()]
            yield against(f"speedup_against_{name}", title, says, axis_title, places, points)
    for key in parameters(list(timed.values())):
        points = {label: run for label, run in timed.items() if key in run.options}
        yield over_parameter(key, points)
    yield from heat_maps(labelled)


def against(name: str, title: str, says: str, axis_title: str, places: Sequence[Any], points: Labelled) -> Picture:
    """Draw the speedup with its interval over some figure, with one mark per run.

    Args:
        name: id of the picture.
        title: its title.
        says: one sentence on how to read it.
        axis_title: title of the horizontal axis.
        places: value of the figure for each run.
        points: the runs by name.
    """
    drawn = figure(axis(words(axis_title)), axis("speedup (ratio)", rangemode="tozero"), height=380)
    drawn.add_hline(y=1, line={"color": GREY, "dash": "dash", "width": 1.4})
    shown = set()
    for place, (label, run) in zip(places, points.items(), strict=True):
        drafter = run.names["drafter"]
        colour, symbol = drafter_style(drafter)
        value, interval = run.figures.speedup or 0.0, run.figures.speedup_ci95
        drawn.add_scatter(
            x=[place],
            y=[value],
            error_y=bars([interval], [value]),
            mode="markers",
            name=words(drafter),
            legendgroup=drafter,
            showlegend=drafter not in shown,
            marker={"color": colour, "symbol": symbol, "size": 12},
            text=[words(label)],
            hovertemplate="%{text}<br>%{x}: %{y:.2f}x<extra></extra>",
        )
        shown.add(drafter)
    columns = ("run", "drafter", axis_title, "speedup", "95 % from", "to")
    rows = [
        [label, run.names["drafter"], place, run.figures.speedup, *(run.figures.speedup_ci95 or (None, None))]
        for place, (label, run) in zip(places, points.items(), strict=True)
    ]
    return Picture(name, title, says, drawn, Table(columns, rows))


def over_parameter(key: str, points: Labelled) -> Picture:
    """Draw the speedup over an option: numbers in their order along the axis, anything else as names."""
    values = [run.options[key] for run in points.values()]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = values if numeric else [str(value) for value in values]
    order = sorted(zip(places, points, strict=True)) if numeric else list(zip(places, points, strict=True))
    ordered = {label: points[label] for _, label in order}
    says = f"The runs that set {key}, whatever else differs between them."
    slug = "".join(letter if letter.isalnum() else "_" for letter in key)
    return against(f"speedup_over_{slug}", f"Speedup over {key}", says, key, [place for place, _ in order], ordered)


def heat_maps(labelled: Labelled) -> Iterator[Picture]:
    for key, title, unit in (("tokens_per_step", "τ", "τ (tokens/step)"), ("speedup", "Speedup", "speedup (ratio)")):
        values: dict[str, dict[str, float]] = {}
        for label, run in labelled.items():
            found = {name: getattr(c, key) for name, c in run.figures.by_category.items()}
            of_run = {name: value for name, value in found.items() if value is not None}
            if of_run:
                values[label] = of_run
        categories = list(dict.fromkeys(name for of_run in values.values() for name in of_run))
        if len(categories) < 2:
            continue
        grid = [[of_run.get(name) for name in categories] for of_run in values.values()]
        names = [
            words(label).replace(" ", "<br>") for label in values
        ]  # broken, because a long line leaves no room on a phone
        lines = sum(1 + name.count("<br>") for name in names)
        drawn = figure(
            axis("", side="top", autotickangles=[0, -90], showgrid=False, type="category"),
            axis("", autorange="reversed", showgrid=False, type="category"),
            height=240 + 16 * len(names) + 18 * lines,
        )
        drawn.add_heatmap(
            z=grid,
            x=[words(n) for n in categories],
            y=names,
            colorscale=SCALE,
            texttemplate="%{z:.2f}",
            xgap=2,
            ygap=2,
            colorbar={
                "orientation": "h",
                "y": -0.03,
                "yanchor": "top",
                "thickness": 10,
                "outlinewidth": 0,
                "title": {"text": unit, "side": "bottom", "font": {"size": 13}},
            },
            hovertemplate="%{y}<br>%{x}: %{z:.3f}<extra></extra>",
        )
        rows = [[label, *row] for label, row in zip(values, grid, strict=True)]
        table = Table(("run", *(f"{name}, {unit}" for name in categories)), rows)
        says = "Each run on each category."
        yield Picture(f"{key}_heat_map", f"{title} by category and run", says, drawn, table, wide=True)


def warnings(labelled: Labelled) -> list[str]:
    """Return warnings about differences that make the comparison unfair."""
    out = []
    for what, of in (
        ("targets", lambda run: run.names["target"]),
        ("machines", lambda run: (run.provenance.get("machine") or {}).get("cpu")),
        ("numeric types", lambda run: run.figures.dtype),
        ("temperatures", lambda run: run.figures.temperature),
    ):
        known = list(dict.fromkeys(str(of(run)) for run in labelled.values() if of(run) is not None))
        if len(known) > 1:
            out.append(f"These runs have different {what} ({', '.join(known)}): their figures do not compare.")
    return out
