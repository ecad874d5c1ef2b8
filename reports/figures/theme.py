"""How figures look, and how they are drawn: colours that colour-blind readers can tell apart, on light and on dark."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert as vlc

WIDTH = 300  # of the plot itself, in pixels: with its labels it fits a phone
ROW = 15  # pixels of one row of dots
INK, MUTED, LINE, PAPER = "#1f2329", "#59616c", "#d9dde2", "#fefefe"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0172b2", "#d45e00", "#019e73", "#b8659c", "#d99a00", "#5ab0e0"
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)  # Okabe and Ito's palette; the page has one for dark, too
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
# Below 1 to above 1; Vega wants the colours of a continuous scale in full.
DIVERGING = ("#0172b2", "#7fb5d6", "#f4f4f4", "#ecab7c", "#d45e00")
NAMES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    PAPER: "paper",
    **{colour: f"series-{n}" for n, colour in enumerate(SERIES)},
}
_HEX = re.compile("|".join(NAMES))
_FONT = "system-ui, sans-serif"
_SCALE = 2  # pixels of a PNG for each of the SVG


Drawn = alt.Chart | alt.LayerChart | alt.FacetChart


@dataclass(frozen=True)
class Chart:
    """A figure: ``id`` names its files, ``title`` says what is drawn."""

    id: str
    title: str
    spec: dict[str, Any]

    def svg(self) -> str:
        """For a file: light, with a ground of its own."""
        return str(vlc.vegalite_to_svg(self.spec))


def png(svg: str) -> bytes:
    """The same figure as pixels."""
    return bytes(vlc.svg_to_png(svg, scale=_SCALE))


def themed(svg: str) -> str:
    """For the page: its colours become the page's variables, and it says nothing that its table does not."""
    return _HEX.sub(lambda found: f"var(--{NAMES[found[0]]})", svg.replace("<svg ", '<svg aria-hidden="true" ', 1))


def chart(id: str, title: str, drawn: Drawn) -> Chart:  # noqa: A002
    """With the common look."""
    styled = drawn.configure(
        aria=False,
        background=PAPER,
        font=_FONT,
        padding={"left": 14, "right": 20, "top": 4, "bottom": 4},  # readers' fonts are wider than Vega's
        axis=alt.AxisConfig(
            labelColor=INK,
            titleColor=MUTED,
            gridColor=LINE,
            domainColor=LINE,
            tickColor=LINE,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=12,
            labelLimit=150,
        ),
        legend=alt.LegendConfig(
            orient="top", title=None, labelColor=INK, labelFontSize=12, columns=3, symbolStrokeWidth=2, columnPadding=20
        ),
        view=alt.ViewConfig(stroke=None),
    )
    return Chart(id, title, styled.to_dict())
