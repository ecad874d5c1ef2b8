"""Time, throughput and memory of backends: a row for each backend, a mark for each mode, a line for its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import altair as alt
import pandas as pd

from reports.cost import MODE_NAMES, TRAINING, Panel
from reports.escape import inline
from reports.figures.theme import BLUE, GREEN, INK, MUTED, ROW, SERIES, SHAPES, VERMILION, WIDTH, Chart, Drawn, chart
from reports.inputs.benchmarks import FROZEN, OK

_SHOWN = {
    "ratio_to_frozen": "time over that of the frozen layer",
    "ratio_to_peft": "time over that of peft",
    "tokens_s": "tokens/s",
    "time_ms": "ms",
    "peak_alloc_delta": "peak memory",
    "saved_bytes": "saved for backward",
}
_TITLES = {
    "ratio_to_frozen": "Time over that of the frozen layer",
    "ratio_to_peft": "Time over that of peft",
    "tokens_s": "Throughput",
    "time_ms": "Time",
    "peak_alloc_delta": "Peak memory of a call",
    "saved_bytes": "Saved from forward to backward",
}
_RATIOS = {"ratio_to_frozen", "ratio_to_peft"}
_RATES = {*_RATIOS, "tokens_s", "time_ms"}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_CROWD = 12  # more backends than that stand closer together
_NAMED = 12  # points of a Pareto view that carry a name


def overall(means: pd.DataFrame) -> list[Chart]:
    """The geometric mean over the cases, with the range of them, by machine."""
    made = []
    for n, (place, here) in enumerate(means.groupby("place", observed=True)):
        rows = [
            (row.backend, str(row.mode), row.ratio_to_frozen, row.ratio_to_frozen_low, row.ratio_to_frozen_high)
            for row in here.itertuples()
        ]
        axis = "time over that of the frozen layer"
        drawn = _dots(rows, axis, floor=True)
        if drawn is not None:
            made.append(chart(f"overall-{n}", f"Over all cases, {inline(place)}", drawn))
    return made


def of_panel(panel: Panel, doubts: Mapping[str, str], points: pd.DataFrame) -> list[Chart]:
    """The figures of one case; those of which there are no values are left out."""
    made = []
    training = any(mode in TRAINING for mode in panel.modes)
    for metric, axis in _SHOWN.items():
        if metric == "time_ms" and training:
            continue
        found = [
            (backend, mode, one)
            for (mode, backend), metrics in panel.figures.items()
            if (one := metrics.get(metric)) and one.status == OK and (mode in TRAINING or not training)
        ]
        unit, scale = ("", 1) if metric in _RATES else _prefix(one.value for *_, one in found)
        rows = [(b, mode, one.value / scale, one.ci_low / scale, one.ci_high / scale) for b, mode, one in found]
        drawn = _dots(rows, f"{axis}, {unit}" if unit else axis, floor=metric in _RATIOS)
        if drawn is not None:
            made.append(chart(f"{panel.id}-{metric.replace('_', '-')}", _TITLES[metric], drawn))
    if len(points) > 1:
        made.append(chart(f"{panel.id}-pareto", "Memory against throughput of a step", _pareto(points, doubts)))
    return made


def _dots(rows: Iterable[tuple[object, str, float, float, float]], axis: str, *, floor: bool) -> Drawn | None:
    """rows: backend, mode, value, low, high. ``floor`` marks the 1 of a ratio."""
    listed = [(inline(backend), MODE_NAMES.get(mode, mode), *figures) for backend, mode, *figures in rows]
    frame = pd.DataFrame(listed, columns=["backend", "mode", "value", "low", "high"]).dropna(subset=["value"])
    if frame.empty:
        return None
    known = [MODE_NAMES.get(mode, mode) for mode in (*TRAINING, "merge", "load", "switch", "mixed")]
    modes = [mode for mode in known if mode in set(frame["mode"])]
    colours, shapes = list(SERIES[: len(modes)]), list(SHAPES[: len(modes)])
    legend = alt.Legend() if len(modes) > 1 else None
    base = alt.Chart(frame).encode(
        y=alt.Y("backend:N", title=None, sort=list(dict.fromkeys(frame["backend"])), axis=alt.Axis(grid=True)),
        yOffset=alt.YOffset("mode:N", sort=modes),
        color=alt.Color("mode:N", scale=alt.Scale(domain=modes, range=colours), legend=legend),
    )
    across = alt.X("value:Q", title=axis, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5))
    line = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=axis), x2="high:Q")
    dot = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=across, shape=alt.Shape("mode:N", scale=alt.Scale(domain=modes, range=shapes), legend=legend)
    )
    layers: list[alt.Chart] = [line, dot]
    if floor:
        one = pd.DataFrame({"at": [1.0]})
        layers.insert(0, alt.Chart(one).mark_rule(color=MUTED, strokeDash=[4, 3]).encode(x="at:Q"))
    backends = frame["backend"].nunique()
    height = (ROW if backends <= _CROWD else ROW - 5) * len(modes) * backends + 10
    return alt.layer(*layers).properties(width=WIDTH, height=height)


def _prefix(values: Iterable[float]) -> tuple[str, int]:
    """The unit of bytes in which the largest value reads well."""
    largest = max(values, default=0)
    return max((each for each in _BYTES.items() if each[1] <= max(largest, 1)), key=lambda each: each[1])


def _pareto(points: pd.DataFrame, doubts: Mapping[str, str]) -> Drawn:
    """Left and up is better. The line joins what no conforming backend beats; a cross does not conform."""
    kinds = {"conforms": (GREEN, "circle"), "does not conform": (VERMILION, "cross"), "frozen": (MUTED, "square")}
    unit, scale = _prefix(points["memory"])
    frame = points.assign(backend=points["backend"].map(inline), held=points["memory"] / scale)
    frame["kind"] = [
        "frozen" if name == FROZEN else "does not conform" if name in doubts else "conforms"
        for name in points["backend"]
    ]
    used = [kind for kind in kinds if kind in set(frame["kind"])]
    colours, shapes = [kinds[kind][0] for kind in used], [kinds[kind][1] for kind in used]
    x = alt.X(
        "held:Q", title=f"peak memory, {unit}", scale=alt.Scale(zero=False, padding=20), axis=alt.Axis(tickCount=5)
    )
    y = alt.Y("throughput:Q", title="tokens/s", scale=alt.Scale(zero=False, padding=16), axis=alt.Axis(tickCount=6))
    base = alt.Chart(frame).encode(x=x, y=y)
    step = alt.Chart(frame[frame["best"]]).mark_line(interpolate="step-after", color=BLUE, strokeWidth=1.5)
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(
        color=alt.Color("kind:N", scale=alt.Scale(domain=used, range=colours)),
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=used, range=shapes)),
    )
    named = frame if len(frame) <= _NAMED else frame[frame["best"] | ~frame["conforms"]].head(_NAMED)
    named = named.sort_values("throughput", ascending=False)
    line = base.mark_rule(color=MUTED, strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q", title="tokens/s"), y2="high:Q")
    layers: list[alt.Chart] = [line, step.encode(x=x, y=y), dots]
    for part, dy in ((named[::2], -7), (named[1::2], 9)):  # in turns above and below, so that neighbours are legible
        names = alt.Chart(part).mark_text(align="left", dx=8, dy=dy, fontSize=12, color=INK, limit=130)
        layers.append(names.encode(x=x, y=y, text="backend:N"))
    return alt.layer(*layers).properties(width=WIDTH, height=220)
