"""The page in a real browser: what rows say is shown as they say it, and none of it is obeyed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from peftkit.report import page as pages
from peftkit.report.page import page
from tests.report.made import HOSTILE, made


@pytest.fixture
def shown(browser: Any, tmp_path: Path) -> Iterator[Page]:
    (tmp_path / "page.html").write_text(page(made()), encoding="utf-8")
    opened = browser.new_page(color_scheme="dark")
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda problem: problems.append(str(problem)))
    opened.on("request", lambda asked: problems.append(asked.url) if not asked.url.startswith("file:") else None)
    opened.goto(f"file://{tmp_path}/page.html")
    yield opened
    opened.close()
    assert not problems


def test_hostile_rows_are_shown_and_not_run(shown: Page) -> None:
    assert shown.evaluate("window.hit") is None
    assert shown.locator("script, style").count() == 2
    assert shown.locator("img, svg, iframe, link").count() == 0
    for text in HOSTILE:
        row = shown.locator("#rows tbody tr", has_text=text[:20]).first
        assert text in row.locator("td").nth(2).evaluate("cell => cell.textContent")


def test_rows_are_filtered_and_sorted(shown: Page) -> None:
    def rows() -> list[str]:
        return shown.locator("#rows tbody tr:visible td:first-child").evaluate_all(
            "all => all.map(x => x.dataset.value)"
        )

    assert rows() == ["1", "0", "3", "2"]
    assert shown.locator("#told").inner_text() == "4 of 4 rows"
    shown.locator("#rows th button").first.click()
    assert rows() == ["0", "1", "2", "3"]
    shown.locator("#rows th button").last.click()
    assert rows() == ["3", "2", "1", "0"]
    shown.locator("input[value=broken]").uncheck()
    assert rows() == ["3", "2", "1"]
    shown.locator("#search").fill("ONERROR")
    assert rows() == ["1"]
    assert shown.locator("#told").inner_text() == "1 of 4 rows"


def test_words_that_differ_are_marked_and_dark_is_dark(shown: Page) -> None:
    assert shown.locator("del").first.inner_text() == "one"
    assert shown.locator("ins").first.inner_text() == "other"
    colour = shown.evaluate("getComputedStyle(document.querySelector('.better')).color")
    assert colour == "rgb(127, 219, 166)"


def test_its_policy_stops_what_would_get_through(browser: Any, tmp_path: Path) -> None:
    """With escaping switched off by hand the browser still runs nothing of it."""
    text = page(made()).replace("<h1>", f"<h1>{HOSTILE[0]}{HOSTILE[1]}", 1)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    opened = browser.new_page()
    opened.goto(f"file://{tmp_path}/page.html")
    assert opened.locator("h1 img").count() == 1  # it is there, as if nothing had been escaped
    assert opened.evaluate("window.hit") is None
    assert opened.locator("#told").inner_text() == "4 of 4 rows"  # and the page's own script has run
    opened.close()


def test_a_page_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST", 1)
    text = page(made())
    assert text.count("<tr data-kind") == 1 and "3 more changed rows are left out here" in text
    assert "No row has another answer" in page(made(changes=made().changes[4:]))
