"""Special words are linked where a page uses them first, and explained at its end."""

import re
from pathlib import Path

import pytest
from helpers import study_files

from robreg.report.glossary import WORDS, Glossary
from robreg.report.page import write


def test_a_word_is_linked_once_and_the_text_around_it_is_escaped() -> None:
    glossary = Glossary()
    found = glossary.link("<b>The margin & the margins of AR 8, armed</b>")
    assert found == (
        '&lt;b&gt;The <a class="word" href="#word-margin">margin</a> &amp; the margins of '
        '<a class="word" href="#word-ar">AR</a> 8, armed&lt;/b&gt;'
    )
    assert glossary.link("AR, margin") == "AR, margin"
    assert [word for _, word, _ in glossary.entries()] == ["AR", "margin"]


def test_words_of_several_words_are_found_before_their_parts() -> None:
    glossary = Glossary()
    assert 'href="#word-adversarial-accuracy"' in glossary.link("adversarial accuracy")
    assert ">circular convolutions</a>" in glossary.link("the circular convolutions of a layer")
    assert 'href="#word-zero-padded"' in glossary.link("the zero-padded operator")
    assert "href" not in Glossary().link("circularly, marginal, w_minimum")


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_every_linked_word_of_a_page_is_explained_and_no_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    described, files = study_files.make(name, "A study of AR and margins")
    write(tmp_path / "page.html", described, files, template=study_files.PAGES / "report.html.j2")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    linked = re.findall(r'href="#word-([\w-]+)"', page)
    explained = re.findall(r'<dt id="word-([\w-]+)"', page)
    assert sorted(linked) == sorted(explained)
    assert {"ar", "margin", "dlr", "w-min", "v-min", "ramp", "ddof", "circular", "slack"} <= set(linked) <= set(WORDS)
    assert "A study of AR and margins</h1>" in page  # a user's text is not searched
