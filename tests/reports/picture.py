"""A picture of a report for people who have not opened one: ``python picture.py PAGE.html PICTURE.png``."""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from test_browser import found

WIDTH, HEIGHT = 1240, 1000


def take(page: Path, picture: Path) -> None:
    """The summary and the matrix, as they stand when the page is opened."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found(playwright.chromium.executable_path))
        shown = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        shown.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
