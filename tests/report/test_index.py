"""The list of all studies: their titles and verdicts, of received studies, too."""

import os
import re
from pathlib import Path

import pytest
from helpers import study_files
from playwright.sync_api import Page

from robreg.report import index

HOSTILE = "<script>window.hit = 1</script>&\"'<img src=x onerror='window.hit = 1'>"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the studies demo and conventions, the title of the first one hostile, and return their folder."""
    monkeypatch.chdir(tmp_path)
    study_files.page("demo", HOSTILE)
    study_files.page("conventions", "Conventions")
    return tmp_path / "results"


def written(results: Path) -> str:
    index.write(results, study_files.PAGES / "index.html.j2")
    return (results / "index.html").read_text(encoding="utf-8")


def test_every_study_is_listed_with_its_title_and_verdicts(results: Path) -> None:
    one, other = index.list_studies(results)
    assert (one.name, one.title, other.title) == ("conventions", "Conventions", HOSTILE)
    frame = study_files.claims(study_files.make("demo", "t")[0]["runs"])
    assert other.verdicts["holds"] == (frame["verdict"] == "holds").sum() > 0
    assert sum(other.verdicts.values()) == (frame["verdict"] != "not run").sum()
    assert 'href="studies/demo/report.html"' in written(results)


def test_a_received_study_cannot_put_markup_into_the_list(results: Path, page: Page) -> None:
    odd = results / "studies" / "a'\"><b>&#\udcff"
    (results / "studies/conventions").rename(odd)
    found = written(results)
    assert "<script" not in found
    assert "<b>" not in found
    (address,) = re.findall(r'href="(studies/a[^"]*)"', found)
    page.goto((results / "index.html").as_uri())
    assert page.evaluate("[window.hit, document.images.length]") == [None, 0]
    assert HOSTILE in page.inner_text("table")
    page.goto(f"{results.as_uri()}/{address}")
    assert page.title() == "Conventions"


def test_a_study_that_cannot_be_read_does_not_hide_the_others(results: Path) -> None:
    claims = results / "studies/demo/claims.parquet"
    claims.unlink()
    for make in (
        lambda: claims.write_bytes(b"PAR1"),
        lambda: claims.symlink_to("/etc/passwd"),
        lambda: os.mkfifo(claims),
    ):
        make()
        one, other = index.list_studies(results)
        assert (one.problem, other.problem) == ("", "cannot be read")
        assert "cannot be read" in written(results)
        claims.unlink()


def test_the_list_is_written_with_every_report(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robreg.report import page as page_module

    monkeypatch.setattr(page_module, "refuse_changed_study", lambda *_, **__: None)
    described, files = study_files.make("demo", "The demo")
    out = Path("results/studies/demo/report.html")
    page_module.record(out, described, files, template=study_files.template())
    assert "The demo" in (results / "index.html").read_text(encoding="utf-8")
