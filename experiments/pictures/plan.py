"""Show when speculation pays in one picture: the cost of more nodes, and the speedup of the best tree."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.pictures.style import GREY, PALETTE, axis, figure
from specdec.hardware import CostCurve
from specdec.hardware.planning import Plan

COSTED = (1, 8, 32, 128)  # batch sizes for which the cost of nodes is drawn
MOST_TIMES = 5  # a forward that costs more than this many decode steps pays for no tree
NODES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def picture(grid: Mapping[tuple[int, int], Plan], verify: CostCurve, most: int, title: str) -> go.Figure:
    """Draw two panels.

    - left: time of a forward over its nodes, relative to plain decoding, at the shortest context
    - right: speedup of the best tree over the batch, one line per context

    Args:
        grid: the plans, by (batch, context).
        verify: seconds of a forward.
        most: largest number of drafted nodes.
        title: title of the picture.
    """
    nodes = [n for n in NODES if n <= most + 1]
    contexts = sorted({context for _, context in grid})
    batches = sorted({batch for batch, context in grid if context == contexts[0]})
    base = figure({}, {}, height=420).layout
    drawn = make_subplots(
        cols=2,
        horizontal_spacing=0.12,
        subplot_titles=[
            f"what nodes cost, behind {contexts[0]:,} tokens",
            "what is left of them: the best tree's speedup",
        ],
    )
    drawn.update_layout(base)
    for colour, batch in zip(PALETTE, [b for b in COSTED if b in batches], strict=False):
        plain = verify.seconds(1, batch, contexts[0])
        drawn.add_scatter(
            x=nodes,
            y=[verify.seconds(n, batch, contexts[0]) / plain for n in nodes],
            mode="lines+markers",
            name=f"batch {batch}",
            line={"color": colour, "width": 2.2},
            marker={"size": 6},
            legendgrouptitle_text="cost",
            legendgroup="cost",
            row=1,
            col=1,
        )
    for number, (colour, context) in enumerate(zip(PALETTE, contexts, strict=False)):
        plans = [plan for (_, c), plan in sorted(grid.items()) if c == context]
        drawn.add_scatter(
            x=[plan.batch for plan in plans],
            y=[plan.speedup for plan in plans],
            customdata=[[len(plan.paths), plan.tokens_per_step] for plan in plans],
            mode="lines+markers",
            name=f"{context:,} tokens",
            line={"color": colour, "width": 2.2, "dash": "solid" if number % 2 == 0 else "dash"},
            marker={"size": 7},
            legendgrouptitle_text="speedup behind",
            legendgroup="speedup",
            hovertemplate="batch %{x}: %{y:.2f}x, %{customdata[0]} nodes, τ %{customdata[1]:.2f}<extra></extra>",
            row=1,
            col=2,
        )
    drawn.add_hline(y=1, line={"color": GREY, "dash": "dash", "width": 1.4}, row=1, col=2)
    drawn.update_xaxes(axis("nodes per sequence (root included)", type="log", dtick=0.30103), row=1, col=1)
    drawn.update_yaxes(axis("time over plain decoding (ratio)", range=[0, MOST_TIMES]), row=1, col=1)
    drawn.update_xaxes(axis("batch (sequences)", type="log", dtick=0.30103), row=1, col=2)
    drawn.update_yaxes(axis("speedup (ratio)", rangemode="tozero"), row=1, col=2)
    return drawn.update_layout(
        title={"text": title, "font": {"size": 14}, "y": 0.98},
        margin={"l": 12, "r": 16, "t": 80, "b": 12},
        legend={"orientation": "v", "x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"},
    )
