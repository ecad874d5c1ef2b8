"""From content to one HTML file. Templates escape all that they print; the script runs by its hash and nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports.content import Content
from reports.escape import inline, plain
from reports.figures.theme import themed
from reports.page import matrix
from reports.report import Report
from reports.summary import LEGEND, NOTHING


def render(content: Content, svgs: Mapping[str, str]) -> str:
    """The page.

    svgs: the figures by the id of their chart.
    """
    messages = matrix.Messages()
    suites = [
        {"suite": suite, "id": f"suite-{n}", "data": matrix.data(suite, messages), "label": matrix.label}
        for n, suite in enumerate(content.report.suites)
    ]
    style, script = (_source(name) for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            content=content,
            report=content.report,
            suites=suites,
            messages=messages,
            kills=kill_matrix(content.report),
            figures={name: Markup(themed(svg)) for name, svg in svgs.items()},  # noqa: S704 - drawn by Vega from data
            legend={word: what for word, what in LEGEND.items() if word not in {"PASS", NOTHING}},
            style=Markup(style),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - likewise
            digest=digest,
        )
    )


def kill_matrix(report: Report) -> dict[str, Any]:
    """rows: by mutant, a character for each invariant: blank not tried, "." not found, "o" found, "x" found and named,
    "!" named and not found.
    """
    if report.kills.empty:
        return {}
    marks = {(True, True): "x", (True, False): "o", (False, True): "!", (False, False): "."}
    invariants = list(dict.fromkeys(report.kills["invariant"]))
    column = {name: n for n, name in enumerate(invariants)}
    rows: dict[str, list[str]] = {}
    for kill in report.kills.fillna({"named": False}).itertuples():
        row = rows.setdefault(kill.mutant, [" "] * len(invariants))
        row[column[kill.invariant]] = marks[bool(kill.killed), bool(kill.named)]
    told = [[inline(name), "".join(row)] for name, row in rows.items()]
    return {"invariants": list(map(inline, invariants)), "rows": told}


def _environment() -> Environment:
    """Escapes by default; control characters, which HTML has no escape for, are shown as such."""
    return Environment(
        loader=PackageLoader("reports.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else plain(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    return (files("reports.page") / name).read_text(encoding="utf-8")
