"""A history: a dot for each run, a line for each level, a rule where a new one begins."""

from __future__ import annotations

import altair as alt

from reports.figures.theme import BLUE, MUTED, VERMILION, WIDTH, Chart, chart
from reports.tables.history import Course

_SPAN = 0.1  # the axis reaches so far to both sides at least: noise of a per cent stays flat


def course(found: Course) -> Chart:
    """Of one series."""
    frame = found.points.assign(time=found.points["timestamp"].dt.tz_localize(None))
    frame = frame[["time", "value", "level", "step"]].copy()
    frame["segment"] = frame["step"].fillna(value=False).astype(int).cumsum()
    low, middle, high = (float(frame["value"].quantile(q)) for q in (0, 0.5, 1))
    ends = [min(low, (1 - _SPAN) * middle), max(high, (1 + _SPAN) * middle)]
    x = alt.X("time:T", title=None, axis=alt.Axis(tickCount=4, format="%b %d", grid=False))
    y = alt.Y("value:Q", title=found.unit, scale=alt.Scale(domain=ends), axis=alt.Axis(tickCount=5))
    base = alt.Chart(frame)
    dots = base.mark_point(filled=True, size=28, color=BLUE, opacity=0.8).encode(x=x, y=y)
    levels = base.mark_line(color=VERMILION, strokeWidth=2).encode(x=x, y="level:Q", detail="segment:N")
    began = alt.Chart(frame[frame["step"].fillna(value=False)]).mark_rule(color=MUTED, strokeDash=[4, 3]).encode(x=x)
    drawn = alt.layer(began, dots, levels).properties(width=WIDTH + 40, height=150)
    return chart(found.id, found.title, drawn)
