"""What a reader can do with the page: enlarge figures, sort and copy tables, read it in the dark and on paper."""

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import study_files
from playwright.sync_api import Page


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("parts"))
        yield study_files.page("demo", "The demo")


def test_the_policy_allows_the_page_s_own_script_alone(demo: Path) -> None:
    page = demo.read_text(encoding="utf-8")
    (own,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert own == (study_files.PAGES / "report.js").read_text(encoding="utf-8")
    (allowed,) = re.findall(r"script-src '([^']*)'", page)
    assert allowed == f"sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}"
    assert page.count("<script") == 1


def test_the_page_opens_with_the_answer_and_the_main_figure(demo: Path) -> None:
    header = re.findall(r"<header.*?</header>", demo.read_text(encoding="utf-8"), re.DOTALL)[0]
    first, second, third = re.findall(r'<p class="lede">(.*?)</p>', header)
    assert "loss gap</a> falls (0.110, 0.094, 0.078 and 0.046" in first
    assert second.startswith("The spread of")
    assert third.startswith("Of 6 claims")
    assert re.findall(r'<figure id="([^"]+)"', header) == ["fig1"]
    assert "<p>Over 3 seeds.</p>" in header or "Over 1 to 3 seeds" in header


def test_each_figure_says_what_to_see_in_it(demo: Path) -> None:
    page = demo.read_text(encoding="utf-8")
    for name in study_files.CONFIG["studies"]["demo"]["figures"]:
        (figure,) = re.findall(rf'<figure id="{name}">(.*?)</figure>', page, re.DOTALL)
        assert f'<p class="see">What to see: {name}.</p>' in figure


def test_figures_grow_when_clicked_and_shrink_again_with_and_without_scripts(demo: Path, page: Page) -> None:
    for scripts in (True, False):
        own = page.context.browser.new_context(java_script_enabled=scripts).new_page()
        own.set_viewport_size({"width": 700, "height": 800})
        own.goto(demo.as_uri())
        image = own.locator("#fig3 img")
        small = image.bounding_box()["width"]
        image.click()
        assert image.bounding_box()["width"] >= 960 > small
        own.locator("#fig3 .close").click()
        assert image.bounding_box()["width"] == small
        own.context.close()


def test_tables_are_sorted_by_a_column_and_copied(demo: Path, page: Page) -> None:
    own = page.context.browser.new_context(permissions=["clipboard-read", "clipboard-write"]).new_page()
    own.goto(demo.as_uri())
    rows = "[...document.querySelectorAll('#table3 tbody')][0].rows"
    before = own.evaluate(f"[...{rows}].map(row => row.cells[1].innerText)")
    button = own.locator("#table3 thead").first.locator("button").nth(1)
    for order in (1, -1):
        button.click()
        found = own.evaluate(f"[...{rows}].map(row => row.cells[1].innerText)")
        numbers = [float(text.split()[0].replace("\N{MINUS SIGN}", "-")) for text in found]
        assert numbers == sorted(numbers)[::order]
        assert sorted(found) == sorted(before)
    assert own.locator("#table3 thead").first.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    own.locator("#table3 .copy").first.click()
    own.locator("#table3 .copy", has_text="Copied").first.wait_for()
    copied = own.evaluate("navigator.clipboard.readText()").splitlines()
    assert copied[0].split("\t") == ["AR strength (1/255)", "0", "8", "16", "32"]
    assert len({line.count("\t") for line in copied}) == 1
    own.context.close()


def test_without_scripts_there_are_no_buttons(demo: Path, page: Page) -> None:
    own = page.context.browser.new_context(java_script_enabled=False).new_page()
    own.goto(demo.as_uri())
    assert own.locator("button").count() == 0
    assert own.locator("#table3 td").count() > 10
    own.context.close()


def test_the_navigation_stays_in_view(demo: Path, page: Page) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    page.goto(demo.as_uri())
    page.evaluate("scrollTo(0, 5000)")
    assert page.locator("nav").bounding_box()["y"] == 0
    page.locator("nav a", has_text="Limits").click()
    assert page.locator("#limits").bounding_box()["y"] >= page.locator("nav").bounding_box()["height"]


def test_the_page_is_dark_for_readers_who_prefer_that_but_not_on_paper(demo: Path, page: Page) -> None:
    def brightness() -> int:
        found = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", found)[:3]))

    page.goto(demo.as_uri())
    page.emulate_media(color_scheme="dark", media="screen")
    assert brightness() < 120
    image = page.evaluate("getComputedStyle(document.querySelector('figure img')).backgroundColor")
    assert image == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark", media="print")
    assert brightness() > 700
    assert not page.locator("nav").is_visible()
    assert page.evaluate("document.querySelector('figcaption details p').getBoundingClientRect().height") > 0
    page.emulate_media(color_scheme="light", media="screen")
    assert brightness() > 700
