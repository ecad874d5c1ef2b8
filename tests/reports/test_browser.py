"""The page in a real headless Chromium: it opens, filters, sorts, opens a cell, copies a command, and asks for nothing.

A Chromium is looked for where playwright puts its own (``playwright install chromium``), then as ``chromium``,
``chromium-browser``, ``google-chrome`` or ``chrome`` on the PATH (Debian and Ubuntu: ``apt-get install chromium``), or
where the variable CHROMIUM names it. Without one these tests are skipped and say so.
"""

import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import recorded
import samples
from samples import record
from test_build import evil

import reports
from reports.build import build

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
EVIL = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>'


def found(own: str) -> str | None:
    given = os.environ.get("CHROMIUM")
    return given or (own if Path(own).exists() else next(filter(None, map(shutil.which, NAMES)), None))


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        path = found(started.chromium.executable_path)
        if path is None:
            pytest.skip("no Chromium: playwright install chromium, or apt-get install chromium")
        launched = started.chromium.launch(executable_path=path)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One with every section, a failing cell with a counterexample, and texts that would be markup."""
    root = tmp_path_factory.mktemp("browser")
    inputs = recorded.everything(root / "all")
    bad = {"failure": f"forward: y\n  got  {EVIL}", "cause": EVIL, "reproduce": "lora-conformance reproduce '{}'"}
    records = [record(EVIL, "forward", "ERROR", traceback=f"Traceback\n{EVIL}", **bad)]
    records += [record(EVIL, "training", "PASS", dtype=dtype) for dtype in ("float32", "bfloat16")]
    samples.write(inputs / "evil.jsonl", records)
    build(reports.load(inputs), root / "out")
    return (root / "out" / "index.html").as_uri()


class Opened:
    """The page, and what it said and asked for."""

    def __init__(self, page: playwright.Page, url: str) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(url)

    def rows(self) -> list[str]:
        return self.page.locator(".matrix tbody tr:visible th[scope=row]").all_inner_texts()

    def cell(self, invariant: str, backend: str) -> playwright.Locator:
        heads = self.page.locator(".matrix thead th").all_inner_texts()
        at = next(n for n, text in enumerate(heads) if text.startswith(backend))
        return self.page.locator(".matrix tbody tr", has_text=invariant).locator("td").nth(at - 1)


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def opened(request: pytest.FixtureRequest, browser: playwright.Browser, report: str) -> Iterator[Opened]:
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        has_touch=size == "phone",
        permissions=["clipboard-read", "clipboard-write"],
    )
    shown = Opened(context.new_page(), report)
    yield shown
    assert shown.said == []
    assert shown.asked == [report]
    assert shown.page.evaluate("window.hacked") is None
    context.close()


def test_it_opens_and_fits(opened: Opened) -> None:
    assert opened.page.title() == "LoRA report"
    assert opened.page.locator("section").count() == 9
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ids = opened.page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert opened.page.evaluate("[...document.querySelectorAll('figure')].every(f => f.querySelector('svg'))")


CONTRAST = """() => {
  const light = (text) => {
    const part = text.match(/[\\d.]+/g).slice(0, 3).map((n) => n / 255);
    const [r, g, b] = part.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    const found = getComputedStyle(e).backgroundColor;
    return /, 0\\)$/.test(found) ? ground(e.parentElement) : found;
  };
  return [...document.querySelectorAll("p, li, td, th, td button, th button, small, summary, label, a, h2, h3")]
    .filter((e) => e.textContent.trim() && e.checkVisibility())
    .map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)];
    });
}"""


def test_text_stands_out_from_its_ground(opened: Opened) -> None:
    """4.5 to 1 at least, as WCAG 2.2 asks for (1.4.3, level AA)."""
    found = opened.page.evaluate(CONTRAST)
    assert len(found) > 100
    assert [pair for pair in found if pair[0] < 4.5] == []


def test_the_script_draws_the_cells_that_were_written(opened: Opened) -> None:
    """Python counted them for readers without scripts, the script counts them again for filters."""
    page = opened.page
    drawn = page.locator(".matrix tbody td").all_inner_texts()
    context = page.context.browser.new_context(java_script_enabled=False)
    bare = context.new_page()
    bare.goto(page.url)
    written = bare.locator(".matrix tbody td").all_inner_texts()
    context.close()
    assert [text for text in drawn if text.strip()] == written
    assert "FAIL 1/2" in written
    assert "✓ 1" in written


def test_filters_search_and_sorting(opened: Opened) -> None:
    page = opened.page
    assert opened.rows() == ["forward", "gradients", "training"]
    page.get_by_label("Search", exact=False).first.fill("works")  # in the statement of one
    assert opened.rows() == ["training"]
    page.get_by_label("Search", exact=False).first.fill("")
    page.get_by_label("Show").select_option("GAP")
    assert opened.rows() == ["gradients"]
    assert page.locator(".filters output").inner_text() == "1 of 3 invariants"
    page.get_by_label("Show").select_option("")
    page.get_by_label("Family").select_option("use")
    assert opened.rows() == ["training"]
    page.get_by_label("Family").select_option("")
    page.get_by_label("Sort").select_option("name")
    assert opened.rows() == ["forward", "gradients", "training"]
    page.locator(".matrix thead button", has_text="peft").click()
    assert opened.rows()[0] == "gradients"  # a gap comes before what passes
    assert page.locator(".matrix th[aria-sort]").inner_text().startswith("peft")


def test_the_dtype_filter_counts_again(opened: Opened) -> None:
    assert opened.cell("forward", "wrong").inner_text() == "FAIL 1/2"
    opened.page.get_by_label("Dtype").select_option(label="bfloat16")
    assert opened.cell("forward", "wrong").inner_text() == "✓ 1"
    assert opened.cell("forward", "peft").inner_text() == "–"


def test_backends_can_be_left_out(opened: Opened) -> None:
    opened.page.locator(".columns summary").click()
    opened.page.locator(".columns label", has_text="peft").locator("input").uncheck()
    assert not any("peft" in text for text in opened.page.locator(".matrix thead th:visible").all_inner_texts())


def test_a_cell_opens_its_counterexample_and_the_command_is_copied(opened: Opened) -> None:
    page = opened.page
    opened.cell("forward", "wrong").get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    assert dialog.locator("h3").inner_text() == "forward · wrong 1.0"
    text = dialog.inner_text()
    assert "y is right." in text
    assert "FAIL 1 in layer float32" in text
    assert "PASS 1 in layer bfloat16" in text
    assert "Cause: the delta is doubled" in text
    assert "expected   512" in text
    dialog.get_by_role("button", name="Copy").click()
    dialog.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "lora-conformance reproduce forward --case '{}'"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_gaps_say_why_and_link_upstream(opened: Opened) -> None:
    opened.cell("gradients", "peft").get_by_role("button").click()
    dialog = opened.page.get_by_role("dialog")
    assert "no rank 3" in dialog.inner_text()
    assert dialog.get_by_role("link").get_attribute("href") == "https://example.org/1"


def test_an_invariant_opens_its_statement_and_all_backends(opened: Opened) -> None:
    opened.page.locator(".matrix tbody th button", has_text="gradients").click()
    text = opened.page.get_by_role("dialog").inner_text()
    assert "Gradients are right." in text
    assert "Rests on: forward" in text
    assert "UNSUPPORTED 1 in layer float32" in text


def test_texts_of_a_backend_stay_text(opened: Opened) -> None:
    opened.cell("forward", "<img").get_by_role("button").click()
    dialog = opened.page.get_by_role("dialog")
    assert EVIL in dialog.inner_text()
    assert dialog.locator("img").count() == 0
    dialog.locator("details summary").click()
    assert "Traceback" in dialog.inner_text()


def test_nothing_moves_the_cursor_or_turns_the_text_round(browser: playwright.Browser, tmp_path: Path) -> None:
    build(reports.load(evil(tmp_path / "evil")), tmp_path / "out")
    page = browser.new_page()
    shown = Opened(page, (tmp_path / "out" / "index.html").as_uri())
    page.locator(".kills summary").first.click()
    for cell in (page.locator(".matrix td.ERROR button"), page.locator(".matrix td.GAP button")):
        cell.first.click()
        assert "alert(1)" in page.get_by_role("dialog").inner_text()
        text = page.evaluate("document.documentElement.textContent")
        assert not {c for c in text if c not in "\n\t" and unicodedata.category(c) in {"Cc", "Cf"}}
        page.keyboard.press("Escape")
    assert shown.said == []
    assert len(shown.asked) == 1
    page.close()


def test_by_keyboard_alone(opened: Opened) -> None:
    page = opened.page
    inside = "document.activeElement.closest('.matrix td') !== null"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(inside):
            break
    assert page.evaluate(inside)
    first = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.textContent") == first
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate(inside)  # and the focus is back where it was


def test_a_table_sorts_by_number(opened: Opened) -> None:
    table = opened.page.locator("#table-crossover-0")
    head = table.get_by_role("button", name="time, LoRA / full")
    head.click()
    column = [row.split("\t")[2] for row in table.locator("tbody tr").all_inner_texts()]
    assert column == ["0.2500", "0.5000", "1", "1.250"]
    head.click()
    assert table.locator("tbody tr").first.inner_text().split("\t")[2] == "1.250"


def test_the_kill_matrix_is_drawn_when_it_is_opened(opened: Opened) -> None:
    page = opened.page
    assert page.locator(".killing").count() == 0
    page.locator(".kills summary").click()
    assert page.locator(".killing tbody tr").all_inner_texts() == ["doubled\t●\t·", "sleepy\t!\t"]
    page.locator(".kills").get_by_role("searchbox").fill("sleepy")
    assert page.locator(".killing tbody tr:visible").count() == 1


def test_dark_and_light_can_be_switched(opened: Opened) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    before = opened.page.evaluate(ground)
    opened.page.locator("#theme").click()
    assert opened.page.evaluate(ground) != before
    opened.page.locator("#theme").click()
    assert opened.page.evaluate(ground) == before


def test_one_case_is_shown_at_a_time(browser: playwright.Browser, tmp_path: Path) -> None:
    rows = []
    for n in range(4):
        for backend, ms in (("frozen", 1.0), ("peft", 1.2)):
            rows += recorded.backend_rows(backend, ms, recorded.case(n=n))
    recorded.write(recorded.table(rows), tmp_path / "a.parquet")
    build(reports.load(tmp_path), tmp_path / "out")
    page = browser.new_page()
    page.goto((tmp_path / "out" / "index.html").as_uri())
    assert page.locator("#cases .picked:visible h3").all_inner_texts() == ["tiny/q 64x64 2x16 r8 float32"]
    page.locator("#cases select").select_option(index=2)
    assert page.locator("#cases .picked:visible h3").all_inner_texts() == ["tiny/q 66x64 2x16 r8 float32"]
    page.close()
