"""Simulated memory, stacked by category, and the crossover map."""

from __future__ import annotations

import altair as alt
import pandas as pd

from reports.figures.theme import DIVERGING, INK, MUTED, SERIES, WIDTH, Chart, chart
from reports.tables.simulated import CATEGORIES, Map, Setting, name_of

_GIB = 2**30
_BAR = 30


def memory(setting: Setting) -> Chart:
    """A bar for each step; the dashed line is the GPU's memory."""
    frame = setting.memory.assign(
        GiB=setting.memory["bytes"].astype(float) / _GIB,
        step=[name_of(m, checkpointing=c) for m, c in setting.memory[["method", "checkpointing"]].to_numpy()],
        order=setting.memory["category"].map({name: n for n, name in enumerate(CATEGORIES)}),
    )
    room = pd.DataFrame({"GiB": [float(setting.steps["gpu_memory"].iloc[0]) / _GIB], "what": ["memory of the GPU"]})
    bars = (
        alt.Chart(frame[["step", "category", "GiB", "order"]])
        .mark_bar()
        .encode(
            y=alt.Y("step:N", title=None, sort=list(dict.fromkeys(frame["step"])), axis=alt.Axis(labelLimit=130)),
            x=alt.X("GiB:Q", title="GiB at the peak", axis=alt.Axis(tickCount=6)),
            color=alt.Color("category:N", scale=alt.Scale(domain=list(CATEGORIES), range=list(SERIES))),
            order="order:Q",
        )
    )
    line = alt.Chart(room).mark_rule(color=INK, strokeDash=[4, 3], strokeWidth=1.5).encode(x="GiB:Q")
    name = alt.Chart(room).mark_text(align="right", dx=-4, dy=-4, baseline="bottom", color=MUTED, fontSize=11)
    drawn = alt.layer(bars, line, name.encode(x="GiB:Q", y=alt.value(0), text="what:N"))
    height = _BAR * frame["step"].nunique()
    return chart(setting.id, setting.title, drawn.properties(width=WIDTH, height=height))


def crossover(found: Map) -> Chart:
    """Time of LoRA over that of full fine-tuning: blue below 1, where LoRA is faster."""
    frame = found.cells[["hidden", "tokens", "time_ratio"]].astype(float)
    frame["told"] = frame["time_ratio"].map(lambda ratio: f"{ratio:.2f}")
    widest = max(float(abs(frame["time_ratio"] - 1).max()), 0.1)
    cell = alt.Chart(frame).encode(
        x=alt.X("tokens:O", title="tokens of a step", axis=alt.Axis(labelAngle=0, format=",d", labelOverlap=True)),
        y=alt.Y("hidden:O", title="hidden size", sort="descending"),
    )
    scale = alt.Scale(domain=[max(1 - widest, 0), 1, 1 + widest], range=[DIVERGING[0], DIVERGING[2], DIVERGING[4]])
    colour = alt.Color("time_ratio:Q", scale=scale, legend=None)
    far = alt.expr.abs(alt.datum.time_ratio - 1) > 0.6 * widest
    told = cell.mark_text(fontSize=12).encode(
        text="told:N", color=alt.condition(far, alt.value("#ffffff"), alt.value("#101418"))
    )
    rows, columns = frame["hidden"].nunique(), frame["tokens"].nunique()
    drawn = alt.layer(cell.mark_rect().encode(color=colour), told)
    return chart(found.id, found.title, drawn.properties(width=min(64 * columns, WIDTH + 20), height=36 * rows))
