"""The documentation: it is built without a warning, needs no other host, fits a phone, and describes all there is."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import yaml
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from robreg.claims import verdicts
from robreg.paper import comparison
from robreg.runs.catalogue import FIGURES, TABLES
from robreg.tables import study_tables
from robreg.tables.schemas import SCHEMAS

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


@pytest.fixture(scope="module")
def build():
    """Return a function that builds a site as `make docs` does: from a configuration, into a folder."""
    if find_spec("mkdocs") is None:
        if os.environ.get("CI"):
            pytest.fail("no mkdocs, and CI must build the documentation: make .venv/docs.done")
        pytest.skip("no mkdocs: make .venv/docs.done")
    made = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    arguments = re.search(r"bin/mkdocs (build.*)$", made, re.MULTILINE)[1].split()

    def run(config, folder):
        command = [sys.executable, "-m", "mkdocs", *arguments, "-f", str(config), "-d", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)

    return run


@pytest.fixture(scope="module")
def site(build, tmp_path_factory):
    """Build the documentation, which runs the notebook, and return the folder of its pages."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_link_that_leads_nowhere_fails_the_build(build, tmp_path):
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    kept = {key: config[key] for key in ("site_name", "theme", "plugins", "markdown_extensions", "validation")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(kept))
    (tmp_path / "docs").mkdir()
    (tmp_path / "site").mkdir()
    for text, expected in (
        ("# A", None),
        ("[a](#b)", "no such anchor"),
        ("[a](b.md)", "not found"),
        ("[a](/b)", "absolute"),
    ):
        (tmp_path / "docs/index.md").write_text(text)
        done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
        assert (done.returncode == 0) == (expected is None), (text, done.stderr)
        assert expected is None or expected in done.stderr


@pytest.fixture(scope="module")
def generators(build):
    """Make the modules importable that generate pages."""
    sys.path.insert(0, str(ROOT / "docs"))
    yield
    sys.path.remove(str(ROOT / "docs"))


class Loaded(HTMLParser):
    """Collect what a browser loads when it opens a page, but not where its links lead."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if LOADED.get(tag) in named and named.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(named[LOADED[tag]])


def html(site):
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")  # which only a server shows


def test_no_page_and_no_style_loads_anything_from_another_host(site):
    outside = re.compile(r"(?:[a-z]+:)?//")
    for path in html(site):
        parser = Loaded()
        parser.feed(path.read_text())
        assert len(parser.found) > 3
        assert [url for url in parser.found if outside.match(url)] == [], path
    styles = list(site.rglob("*.css"))
    assert len(styles) >= 2
    for path in styles:
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", path.read_text()) == [], path


def test_every_page_opens_from_disk_and_fits_a_phone_without_another_host(site, page):
    requests, messages = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.set_viewport_size({"width": 375, "height": 800})
    for path in html(site):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
        assert all(page.evaluate("[...document.images].map(image => image.naturalWidth)")), path
    assert len(html(site)) > 20
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob", "about"}
    assert messages == []


def test_the_search_works_in_a_page_from_disk(site, page):
    page.set_viewport_size({"width": 1280, "height": 800})
    for _ in range(10):  # what is typed before the page listens finds nothing, and a busy machine is slow to listen
        page.goto((site / "index.html").as_uri())
        page.fill("input.md-search__input", "multiplicity")
        with suppress(PlaywrightTimeout):
            page.wait_for_selector(".md-search-result__link", timeout=15_000)
            break
    links = page.eval_on_selector_all(".md-search-result__link", "links => links.map(link => link.href)")
    assert any("reference/tables.html" in link for link in links)


def test_every_column_is_described_and_no_other():
    about = yaml.safe_load((ROOT / "docs/columns.yaml").read_text())
    schemas = {**SCHEMAS, "claims": verdicts.SCHEMA, "comparison": comparison.SCHEMA}
    assert about.keys() - {"study"} == schemas.keys()
    for table, schema in schemas.items():
        assert set(about[table]) - {"each row"} == set(schema.names), f"docs/columns.yaml: {table}"


def test_the_page_of_files_has_every_table_and_column(site):
    text = (site / "reference/tables.html").read_text()
    schemas = {**SCHEMAS, "claims": verdicts.SCHEMA, "comparison": comparison.SCHEMA}
    assert all(f"<code>{table}.parquet</code>" in text for table in schemas)
    columns = {*study_tables.KEYS, *(name for schema in schemas.values() for name in schema.names)}
    assert {name for name in columns if f"<code>{name}</code>" not in text} == set()


def test_every_key_of_the_configuration_is_described(site):
    def keys(node):
        if isinstance(node, dict):
            yield from node.get("properties", ())
            for value in node.values():
                yield from keys(value)

    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    text = (site / "reference/configuration.html").read_text()
    expected = {key for key in keys(schema) if isinstance(key, str)}
    assert len(expected) > 60
    assert {key for key in expected if f"<code>{key}</code>" not in text} == set()


def test_every_figure_and_table_is_in_the_list_of_targets():
    text = (ROOT / "docs/reference/targets.md").read_text()
    listed = set(re.findall(r"(?:figures|tables)/(\w+)\.", text))
    spelt_out = {"table4", "table5", "table3", "fig9", "fig10", "fig11", "conventions"}
    assert {*FIGURES, *TABLES} - spelt_out <= listed


def test_the_page_of_the_notebook_has_what_its_cells_print_and_draw(site):
    text = (site / "notebooks/first-look.html").read_text()
    assert re.search(r"AR 32: test accuracy \d\d\.\d %", text)
    assert "72.47" in text  # test accuracy of AR 0 in reference/first-light
    pictures = re.findall(r'src="(first-look-\d\.png)"', text)
    assert len(pictures) == 4
    assert all((site / "notebooks" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_the_notebook_is_valid_and_committed_without_outputs():
    notebook = json.loads((ROOT / "docs/notebooks/first-look.ipynb").read_text())
    nbformat.validate(notebook)
    cells = notebook["cells"]
    assert [cell["outputs"] for cell in cells if cell["cell_type"] == "code" and cell["outputs"]] == []


def test_a_notebook_that_fails_fails_the_build(generators, tmp_path):
    from notebook_page import run_notebook

    content = json.dumps({"cells": [{"cell_type": "code", "source": ["print(1)\n", "1 / 0"]}]})
    with pytest.raises(ZeroDivisionError):
        run_notebook(tmp_path / "broken.ipynb", content)


def test_a_cell_shows_what_jupyter_would_show(generators):
    from notebook_page import run_cell

    assert list(run_cell("print(1)\n2", {})) == ["```text\n1\n```", "```text\n2\n```"]
    assert list(run_cell("2;", {})) == list(run_cell("x = 2", {})) == []
