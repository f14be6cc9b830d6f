"""Colours and axes of every picture. What depends on light or dark (text) is in `assets/style.css`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from experiments.common.entry import CONF

# Okabe and Ito's palette without black and yellow: told apart by colour-blind readers, on white and on black
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
COLOURS = (*PALETTE, "#000000")  # for as many lines, on white
GREY = "#8A919C"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star")
SCALE = "Viridis"  # its order is seen by colour-blind readers, and in grey
PHASES = {"draft": ORANGE, "verify": BLUE, "accept": GREEN, "commit": PURPLE}
GRID = "rgba(128,136,148,0.28)"
CONFIG: Any = {"displayModeBar": False, "responsive": True}


@cache
def _drafters() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (Path(CONF) / "drafter").glob("*.yaml") if file.stem != "none"))


def drafter_style(name: str) -> tuple[str, str]:
    """Colour and symbol of a drafter: the same in every picture, report and dashboard. Autoregressive decoding is
    grey; drafters that have no YAML come after those that do."""
    if name == "none":
        return GREY, SYMBOLS[0]
    known = _drafters()
    place = known.index(name) if name in known else len(known)
    return PALETTE[place % len(PALETTE)], SYMBOLS[place // len(PALETTE) % len(SYMBOLS)]


def axis(title: str, **options: Any) -> dict[str, Any]:
    """An axis with its unit in the title."""
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 13}},
        "automargin": True,
        "ticklabelstandoff": 5,
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        **options,
    }


def figure(x: dict[str, Any], y: dict[str, Any], height: int = 340, **layout: Any) -> go.Figure:
    """An empty figure with these axes."""
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
