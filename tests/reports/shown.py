"""What a report shows, read back: the tables of the page and of the Markdown."""

import csv
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path


@dataclass
class Shown:
    """text as it is read, value the number behind it (None where there is none)."""

    text: str = ""
    value: float | None = None


@dataclass
class Tables(HTMLParser):
    """The sheets of a page by id: rows of cells, the heading first."""

    found: dict[str, list[list[Shown]]] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.rows: list[list[Shown]] | None = None
        self.cell: Shown | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.tags.append(tag)
        if tag == "table":
            self.rows = self.found.setdefault((about.get("id") or "matrix").removeprefix("table-"), [])
        elif tag == "tr" and self.rows is not None:
            self.rows.append([])
        elif tag in {"td", "th"} and self.rows:
            given = about.get("data-v")
            self.cell = Shown(value=None if given is None else float(given))
            self.rows[-1].append(self.cell)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self.cell = None
        elif tag == "table":
            self.rows = None

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.text = " ".join(f"{self.cell.text} {data}".split())


def page(folder: Path) -> dict[str, list[list[Shown]]]:
    parser = Tables()
    parser.feed((folder / "index.html").read_text(encoding="utf-8"))
    return parser.found


def markdown(folder: Path) -> dict[str, list[list[str]]]:
    """Tables of report.md by the heading that they stand under, as plain text."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in (folder / "report.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            title = plain(line.lstrip("# "))
        elif line.startswith("| ") and not line.startswith("| ---"):
            found.setdefault(title, []).append([plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    return found


def plain(text: str) -> str:
    """Without the escapes of Markdown and HTML, and without the parentheses of small print."""
    bare = re.sub(r"\\(.)", r"\1", text).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").strip()
    return re.sub(r" \((\d+ of .*|\d+ % of it|does not conform)\)$", r" \1", bare)


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    """Of a CSV file."""
    with (folder / "tables" / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
