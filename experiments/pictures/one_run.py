"""The pictures of one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go

from experiments.common.escape import words
from experiments.common.tables import identical, number, rate, speedup
from experiments.pictures.picture import Cell, Picture, Table, Tile, bars
from experiments.pictures.style import GREY, PHASES, SCALE, axis, drafter_style, figure
from specdec.metrics import NodeUse, along_text, tree_use
from specdec.runs.read import Run
from specdec.runs.summary import Figures, Summary

MOST_NODES, LABELLED_NODES = 64, 24


def headline(run: Run) -> list[Tile]:
    """Return the figures to read first. Figures that the run does not have (yet) are left out."""
    f = run.figures
    tiles = [Tile("tokens per step τ", number(f.tokens_per_step), "autoregressive: 1.00")]
    if f.speedup is not None:
        value, _, interval = speedup(f).partition(" ")
        tiles.append(Tile("speedup", value, f"{interval} over autoregressive" if interval else "over autoregressive"))
    if f.tokens_per_second is not None:
        plain = f.autoregressive_tokens_per_second
        tiles.append(
            Tile("tokens/s", rate(f.tokens_per_second), "" if plain is None else f"autoregressive: {plain:.1f}")
        )
    if f.bandwidth_share is not None:
        tiles.append(Tile("of the bandwidth limit", f"{f.bandwidth_share:.0%}", "a plain read of the weights / verify"))
    if f.acceptance_rate is not None:
        tiles.append(Tile("acceptance rate", number(f.acceptance_rate), "accepted / depth offered"))
    if f.divergence is not None:
        value, _, note = identical(f).partition(" ")
        tiles.append(Tile("texts identical", value, note.strip("()") or "with autoregressive decoding"))
    if f.lossless is not None:
        tiles.append(Tile("acceptance rule", f.acceptance or "unknown", "lossless" if f.lossless else "lossy"))
    return tiles


def pictures(run: Run) -> list[Picture]:
    """Return all pictures of a run. Pictures without data are left out."""
    return list(_pictures(run))


def _pictures(run: Run) -> Iterator[Picture]:
    f, colour = run.figures, drafter_style(run.names["drafter"])[0]
    if f.acceptance_at_depth:
        yield by_depth(f.acceptance_at_depth, colour)
    if f.emitted_histogram:
        yield emitted(f.emitted_histogram, colour)
    uses = tree_use(run.steps)
    if uses:
        yield tree(uses[:MOST_NODES] if len(uses) <= MOST_NODES else busiest(uses), len(uses))
    if f.phase_ms:
        yield phases(f)
    stretches = along_text(run.texts.values())
    if stretches:
        table = Table(
            ("new tokens before, from", "to", "steps", "tokens/step", "tokens/s"),
            [[s.first, s.last, s.steps, s.tokens_per_step, s.tokens_per_second] for s in stretches],
        )
        yield speed_along(table, f.autoregressive_tokens_per_second, colour)
    if len(f.by_category) > 1:
        yield from by_category(f.by_category, colour)


def by_depth(rates: list[float], colour: str) -> Picture:
    table = Table(("depth (tokens)", "acceptance (probability)"), [list(row) for row in enumerate(rates, 1)])
    drawn = figure(axis("depth (tokens)", dtick=1), axis("acceptance (probability)", range=[0, 1.08], tickformat=".1f"))
    depths, values = _columns(table)
    drawn.add_bar(
        x=depths,
        y=values,
        marker_color=colour,
        text=[f"{v:.2f}" for v in values],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="depth %{x}: %{y:.3f}<extra></extra>",
    )
    says = (
        "How often a token of this depth is accepted, given that the one before it was and the tree reached this deep."
    )
    return Picture("acceptance_by_depth", "Acceptance by depth", says, drawn, table)


def emitted(counts: list[int], colour: str) -> Picture:
    total = sum(counts)
    rows = [[n, count, count / total] for n, count in enumerate(counts, 1)]
    table = Table(("emitted (tokens/step)", "steps", "share of steps"), rows)
    drawn = figure(
        axis("emitted (tokens per step)", dtick=1), axis("share of steps (%)", ticksuffix=" %", rangemode="tozero")
    )
    n, steps, share = _columns(table)
    drawn.add_bar(
        x=n,
        y=[100 * s for s in share],
        marker_color=colour,
        customdata=steps,
        cliponaxis=False,
        text=[f"{s:.0%}" if s >= 0.005 else "" for s in share],
        textposition="outside",
        hovertemplate="%{x} tokens: %{customdata} steps, %{y:.1f} %<extra></extra>",
    )
    says = "How many tokens a step brought: the accepted ones and the target's own. Their mean is τ."
    return Picture("emitted_tokens", "Emitted tokens per step", says, drawn, table)


def busiest(uses: list[NodeUse]) -> list[NodeUse]:
    """Return the nodes offered most often. A node's parent is offered at least as often, so it is included."""
    least = sorted((use.offered for use in uses), reverse=True)[MOST_NODES - 1]
    kept = [use for use in uses if use.offered > least]
    return kept + [use for use in uses if use.offered == least][: MOST_NODES - len(kept)]


def tree(uses: list[NodeUse], total: int) -> Picture:
    """Draw the tree with the root on the left and depth to the right."""
    uses = sorted(uses, key=lambda use: (len(use.place), use.place))
    heights = _heights([use.place for use in uses])
    leaves = len(set(heights) - {place[:-1] for place in heights if place})
    drawn = figure(
        axis("depth (tokens)", dtick=1, showgrid=False, zeroline=False, range=[-0.3, max(map(len, heights)) + 0.5]),
        {"visible": False, "range": [leaves - 0.4, -0.9]},
        height=max(260, 130 + 38 * leaves),
    )
    lines_x: list[float | None] = []
    lines_y: list[float | None] = []
    for use in uses:
        parent = use.place[:-1]
        lines_x += [len(parent), len(use.place), None]
        lines_y += [heights[parent], heights[use.place], None]
    drawn.add_scatter(x=lines_x, y=lines_y, mode="lines", line={"color": GREY, "width": 1.2}, hoverinfo="skip")
    drawn.add_scatter(
        x=[0],
        y=[heights[()]],
        mode="markers",
        hovertemplate="root: the last committed token<extra></extra>",
        marker={"size": 11, "color": "rgba(0,0,0,0)", "line": {"color": GREY, "width": 2}},
    )
    drawn.add_scatter(
        x=[len(use.place) for use in uses],
        y=[heights[use.place] for use in uses],
        mode="markers+text" if len(uses) <= LABELLED_NODES else "markers",
        text=[f"{use.contribution:.2f}" if use.contribution >= 0.005 else "" for use in uses],
        textposition="top center",
        textfont={"size": 11},
        customdata=[[_place(use), use.offered, use.accepted, use.contribution] for use in uses],
        hovertemplate="node %{customdata[0]}<br>accepted %{customdata[2]} of %{customdata[1]} (%{marker.color:.2f})"
        "<br>contributes %{customdata[3]:.3f} tokens per step<extra></extra>",
        marker={
            "size": [12 + 20 * use.contribution**0.5 for use in uses],
            "color": [use.frequency for use in uses],
            "opacity": 1,
            "colorscale": SCALE,
            "cmin": 0,
            "cmax": 1,
            "line": {"color": GREY, "width": 1},
            "colorbar": {
                "thickness": 10,
                "outlinewidth": 0,
                "title": {"text": "accepted<br>/ offered", "font": {"size": 12}},
            },
        },
    )
    drawn.update_layout(showlegend=False)
    rows: list[list[Cell]] = [
        [_place(u), len(u.place), u.offered, u.accepted, u.frequency, u.contribution] for u in uses
    ]
    columns = (
        "node",
        "depth (tokens)",
        "offered (steps)",
        "accepted (steps)",
        "accepted / offered",
        "contribution to τ",
    )
    more = f" The {len(uses)} most offered of {total} nodes." if total > len(uses) else ""
    says = (
        "Colour: how often a node was accepted when it was offered. Number and size: the tokens per step it "
        f"contributed; with the target's own token they make τ.{more}"
    )
    return Picture("tree", "The tree", says, drawn, Table(columns, rows), wide=True)


def _heights(places: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    """Return the heights of nodes: leaves one below the other, every other node in the middle of its children."""
    children: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for place in places:
        children.setdefault(place[:-1], []).append(place)
    heights: dict[tuple[int, ...], float] = {}
    leaf = 0

    def put(place: tuple[int, ...]) -> float:
        nonlocal leaf
        below = [put(child) for child in sorted(children.get(place, []))]
        if below:
            heights[place] = (below[0] + below[-1]) / 2
        else:
            heights[place], leaf = leaf, leaf + 1
        return heights[place]

    put(())
    return heights


def _place(use: NodeUse) -> str:
    """Return the number of the child at each depth, from 1: "1.2" is the second child of the root's first child."""
    return ".".join(str(child + 1) for child in use.place)


def phases(f: Summary) -> Picture:
    named = {"all": f.phase_ms, **{name: c.phase_ms for name, c in f.by_category.items()}}
    names, places = list(reversed(named)), [words(name) for name in reversed(named)]
    drawn = figure(
        axis("time per step (ms)", rangemode="tozero"),
        axis("", showgrid=False),
        height=120 + 34 * len(named),
        barmode="stack",
    )
    for phase, colour in PHASES.items():
        drawn.add_bar(
            y=places,
            x=[named[n].get(phase, 0.0) for n in names],
            name=phase,
            orientation="h",
            marker_color=colour,
            hovertemplate=f"{phase}: %{{x:.2f}} ms<extra>%{{y}}</extra>",
        )
    drawn.update_layout(legend_traceorder="normal")
    rows = [[n, *(ms.get(phase) for phase in PHASES)] for n, ms in named.items()]
    table = Table(("category", *(f"{phase} (ms)" for phase in PHASES)), rows)
    return Picture("phase_time", "Where the time of a step goes", "Mean time of a step, by phase.", drawn, table)


def speed_along(table: Table, plain: float | None, colour: str) -> Picture:
    first, last, steps, _, speed = _columns(table)
    drawn = figure(axis("place in the text (new tokens)", rangemode="tozero"), axis("tokens/s", rangemode="tozero"))
    middle = [(a + b) / 2 for a, b in zip(first, last, strict=True)]
    drawn.add_scatter(
        x=middle,
        y=speed,
        mode="lines+markers",
        name="with drafts",
        line={"color": colour, "width": 2.5},
        marker={"size": 7},
        customdata=steps,
        hovertemplate="around token %{x:.0f}: %{y:.1f} tokens/s (%{customdata} steps)<extra></extra>",
    )
    if plain is not None:
        drawn.add_scatter(
            x=[0, max(last)],
            y=[plain, plain],
            mode="lines",
            name="autoregressive, mean with prompts",
            line={"color": GREY, "dash": "dash", "width": 1.6},
            hovertemplate="%{y:.1f} tokens/s<extra>autoregressive</extra>",
        )
    says = "Speed of the steps that began at this place, over all texts; the prompt's forward is left out."
    return Picture("speed_along_text", "Tokens/s along the text", says, drawn, table)


def by_category(categories: dict[str, Figures], colour: str) -> Iterator[Picture]:
    names = list(reversed(categories))
    taus = [categories[name].tokens_per_step or 0.0 for name in names]
    rows = [[n, c.prompts, c.tokens_per_step, c.acceptance_rate] for n, c in categories.items()]
    table = Table(("category", "prompts", "τ (tokens/step)", "acceptance rate"), rows)
    drawn = _horizontal("tokens per step τ", names, taus, None, colour)
    yield Picture(
        "tau_by_category", "Tokens per step by category", "The dashed line is autoregressive decoding.", drawn, table
    )
    timed = {name: c.speedup for name in names if (c := categories[name]).speedup is not None}
    if not timed:
        return
    values = list(timed.values())
    intervals = [categories[name].speedup_ci95 for name in timed]
    drawn = _horizontal("speedup (ratio)", list(timed), values, bars(intervals, values), colour)
    table = Table(
        ("category", "speedup", "95 % from", "to", "tokens/s", "autoregressive tokens/s"),
        [
            [
                n,
                c.speedup,
                *(c.speedup_ci95 or (None, None)),
                c.tokens_per_second,
                c.autoregressive_tokens_per_second,
            ]
            for n, c in categories.items()
            if n in timed
        ],
    )
    says = "Tokens/s over those of autoregressive decoding, with 95 % intervals where a category has several prompts."
    yield Picture("speedup_by_category", "Speedup by category", says, drawn, table)


def _horizontal(title: str, names: list[str], values: list[float], errors: Any, colour: str) -> go.Figure:
    drawn = figure(axis(title, rangemode="tozero"), axis("", showgrid=False), height=110 + 34 * len(names))
    drawn.add_bar(
        y=[words(name) for name in names],
        x=values,
        orientation="h",
        marker_color=colour,
        error_x=errors,
        text=[f" {v:.2f}" for v in values],
        textposition="inside",
        insidetextanchor="start",
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    return drawn.add_vline(x=1, line={"color": GREY, "dash": "dash", "width": 1.6})


def _columns(table: Table) -> list[list[Any]]:
    return [list(column) for column in zip(*table.rows, strict=True)]
