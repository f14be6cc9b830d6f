"""Plot acceptance rules: on the same trees of a model, and on synthetic p and q."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.pictures.style import COLOURS


def acceptance_plot(results: list[dict[str, Any]]) -> go.Figure:
    """Plot tokens per step over temperature, with one panel per kind of trees and one line per rule."""
    kinds = list(dict.fromkeys(r["trees"] for r in results))
    rules = list(dict.fromkeys(r["rule"] for r in results))
    figure = make_subplots(cols=len(kinds), subplot_titles=kinds, shared_yaxes=True)
    shown = set()
    for column, kind in enumerate(kinds, 1):
        for name in dict.fromkeys(r["rule"] for r in results if r["trees"] == kind):
            points = [r for r in results if r["trees"] == kind and r["rule"] == name]
            figure.add_scatter(
                x=[r["temperature"] for r in points],
                y=[r["tokens_per_step"] for r in points],
                error_y=error_bars(points),
                name=name if points[0]["lossless"] else f"{name} (lossy)",
                legendgroup=name,
                showlegend=name not in shown,
                line={
                    "color": COLOURS[rules.index(name) % len(COLOURS)],
                    "dash": "solid" if points[0]["lossless"] else "dot",
                },
                row=1,
                col=column,
            )
            shown.add(name)
    figure.update_xaxes(title="temperature")
    figure.update_yaxes(title="tokens per step τ", col=1)
    return figure.update_layout(title="Acceptance rules on the same trees", template="plotly_white")


def error_bars(points: list[dict[str, Any]]) -> dict[str, list[float]] | None:
    if any(r["tokens_per_step_ci95"] is None for r in points):
        return None
    low, high = zip(*(r["tokens_per_step_ci95"] for r in points), strict=True)
    taus = [r["tokens_per_step"] for r in points]
    return {
        "array": [bound - tau for bound, tau in zip(high, taus, strict=True)],
        "arrayminus": [tau - bound for bound, tau in zip(low, taus, strict=True)],
    }


def study_plot(results: list[dict[str, Any]], title: str) -> go.Figure:
    """Plot expected accepted tokens over the distance of q from p, with one line per rule and way of drawing."""
    figure = go.Figure()
    rules = list(dict.fromkeys(r["rule"] for r in results))
    dashes = dict(zip(dict.fromkeys(r["siblings"] for r in results), ("solid", "dash", "dot"), strict=False))
    for how, name in dict.fromkeys((r["siblings"], r["rule"]) for r in results):
        points = [r for r in results if (r["siblings"], r["rule"]) == (how, name)]
        figure.add_scatter(
            x=[r["total_variation"] for r in points],
            y=[r["accepted"] for r in points],
            name=f"{name}, {how.replace('_', ' ')}",
            line={"color": COLOURS[rules.index(name) % len(COLOURS)], "dash": dashes[how]},
        )
    figure.update_xaxes(title="total variation between p and q")
    figure.update_yaxes(title="expected accepted tokens per tree")
    return figure.update_layout(title=f"Acceptance rules, exact: {title}", template="plotly_white")
