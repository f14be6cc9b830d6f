"""Colours and axes of every picture. Colours that depend on light or dark mode (text) are in `assets/style.css`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from experiments.common.entry import CONF

# Okabe and Ito's palette without black and yellow: colour-blind readers can distinguish it, on white and on black
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
COLOURS = (*PALETTE, "#000000")  # for up to seven lines, on white
GREY = "#8A919C"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star")
SCALE = "Viridis"  # colour-blind readers see its order, and it also works in grey
PHASES = {"draft": ORANGE, "verify": BLUE, "accept": GREEN, "commit": PURPLE}
GRID = "rgba(128,136,148,0.28)"
CONFIG: Any = {"displayModeBar": False, "responsive": True}


@cache
def _drafters() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (Path(CONF) / "drafter").glob("*.yaml") if file.stem != "none"))


def drafter_style(name: str) -> tuple[str, str]:
    """Return colour and symbol of a drafter, the same in every picture, report and dashboard.

    Autoregressive decoding is grey. Drafters without a YAML come after those with one.
    """
    if name == "none":
        return GREY, SYMBOLS[0]
    known = _drafters()
    place = known.index(name) if name in known else len(known)
    return PALETTE[place % len(PALETTE)], SYMBOLS[place // len(PALETTE) % len(SYMBOLS)]


def axis(title: str, **options: Any) -> dict[str, Any]:
    """Return an axis with its unit in the title."""
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 13}},
        "automargin": True,
        "ticklabelstandoff": 5,
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        **options,
    }


def figure(x: dict[str, Any], y: dict[str, Any], height: int = 340, **layout: Any) -> go.Figure:
    """Return an empty figure.

    Args:
        x, y: the axes.
        height: in pixels.
        layout: other options of Plotly's layout.
    """
    return go.Figure(
        layout={
            "template": "none",
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": GREY},
            "margin": {"l": 12, "r": 16, "t": 16, "b": 12},
            "height": height,
            "autosize": True,
            "dragmode": False,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
            "xaxis": {**x, "fixedrange": True},
            "yaxis": {**y, "fixedrange": True},
            **layout,
        }
    )
