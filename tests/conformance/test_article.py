"""docs/article.md says of each specimen what the suite says.

``python tests/conformance/test_article.py`` writes the page's table anew after a change that was meant (some minutes).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import conformance.invariants
from conformance.invariant import REGISTRY
from conformance.measure.kills import KILLED, trials
from conformance.mutants import MUTANTS
from conformance.trial import run, unsupported

assert conformance.invariants

PAGE = Path(__file__).parents[2] / "docs" / "article.md"
BEGIN, END = "<!-- verdicts -->\n", "<!-- end of verdicts -->"
SPECIMENS = [name.removeprefix("article-") for name in MUTANTS if name.startswith("article-")]
BROKEN, FOLLOWS, HOLDS, SILENT = "**broken**", "follows", "holds", ""
pytestmark = pytest.mark.filterwarnings("ignore")  # else a specimen might fail for a warning by a library


def verdicts(specimen: str) -> dict[str, str]:
    """By invariant, in the quick profile, of all facets that the specimen has; silent where none of them is judged.

    What is broken and rests on something broken follows from it.
    """
    found: dict[str, str] = {}
    for name, invariant in REGISTRY.items():
        judged = [trial for trial in trials(f"article-{specimen}", name) if not unsupported(trial, "quick")]
        red = any(run(trial, profile="quick", seed=0, shrink=False).verdict in KILLED for trial in judged)
        rests = any(found[earlier] in {BROKEN, FOLLOWS} for earlier in invariant.after)
        found[name] = SILENT if not judged else HOLDS if not red else FOLLOWS if rests else BROKEN
    return found


def written() -> dict[str, list[str]]:
    """The page's table: what stands in the row of each invariant."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in rest.partition(END)[0].splitlines()
    ]
    assert rows[0] == ["", *SPECIMENS]
    return {row[0]: row[1:] for row in rows[2:] if len(row) > 1}


@pytest.mark.slow
@pytest.mark.parametrize("specimen", SPECIMENS)
def test_page_says_what_the_suite_says(specimen: str) -> None:
    rows, column = written(), SPECIMENS.index(specimen)
    assert {invariant: said for invariant, said in verdicts(specimen).items() if said} == {
        invariant: row[column] for invariant, row in rows.items() if row[column]
    }


def test_page_has_each_specimen() -> None:
    """With its defect, and named for what finds it."""
    page = PAGE.read_text(encoding="utf-8")
    parts = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##)", page, flags=re.MULTILINE | re.DOTALL))
    assert [*parts] == SPECIMENS
    for specimen, part in parts.items():
        mutant = MUTANTS[f"article-{specimen}"]
        assert mutant.defect in " ".join(part.split())
        assert all(f"`{invariant}`" in part for invariant in mutant.killed_by)
        assert "```python" in part
        found = {invariant: row[SPECIMENS.index(specimen)] for invariant, row in written().items()}
        assert {found[invariant] for invariant in mutant.killed_by} <= {BROKEN, FOLLOWS}


def table() -> str:
    """A row for each invariant that says something of any specimen; those that find one come first."""
    columns = [verdicts(specimen) for specimen in SPECIMENS]
    rows = {invariant: [column[invariant] for column in columns] for invariant in REGISTRY}
    rows = {invariant: row for invariant, row in rows.items() if any(row)}
    lines = [f"| {invariant} | {' | '.join(row)} |" for invariant, row in sorted(rows.items(), key=_finds_none)]
    return "\n".join([f"| | {' | '.join(SPECIMENS)} |", f"|---|{'---|' * len(SPECIMENS)}", *lines]) + "\n"


def _finds_none(row: tuple[str, list[str]]) -> bool:
    return not {BROKEN, FOLLOWS} & {*row[1]}


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
