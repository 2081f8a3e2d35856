"""Test the report: correct numbers, every claim with its verdict, escaped hostile text, a page that opens offline."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docutils.core
import pandas as pd
import pytest
from docutils.utils import Reporter
from helpers import study_files
from helpers.browser import assert_works_offline
from helpers.http_server import serving
from helpers.snakemake_copy import copy_tree, snakemake
from playwright.sync_api import Page

from robreg.claims.claim import EXTENSION, NOT_RUN
from robreg.paper.agreement import describe_closer_space
from robreg.paper.deviations import deviations
from robreg.report import claims_count, claims_section, comparison_section, pictures
from robreg.report import page as page_module
from robreg.report.attack_words import describe_attack
from robreg.report.cautions import cautions, describe_unmeasured, limits
from robreg.report.costs import RuleCost, rule_costs, run_accounts, shared_settings
from robreg.report.data_words import describe_data
from robreg.report.page import write
from robreg.report.provenance_section import code_sentences
from robreg.report.results_section import SECTIONS, caption, sections
from robreg.report.rule_graph import RULE_INPUTS, rule_graph
from robreg.report.run_section import read_meta
from robreg.report.space_words import describe_conventions, describe_radii
from robreg.report.tables_section import split_constants, table_blocks
from robreg.report.units import describe, format_cell, format_duration
from robreg.runs.catalogue import FIGURES
from robreg.runs.settings import run_settings, training_settings
from robreg.tables import parquet, provenance, study_tables

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
HOSTILE = "<script>alert(1)</script> \"quoted\" & 'more' {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create a working folder with the reports of the studies demo, whose title is hostile, and paper."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        for rule, run, seconds in (("train", "digits/ar8", 125.2), ("sv", "digits/ar8", 5), ("figure", "demo/fig1", 3)):
            spent = Path(f"benchmarks/{rule}/{run}.tsv")
            spent.parent.mkdir(parents=True)
            spent.write_text(f"s\th:m:s\tmax_rss\tcpu_time\n{seconds}\t0:02:05\t512.00\t{2 * seconds}\n")
        study_files.page("demo", HOSTILE)
        study_files.page("paper", "The paper")
        yield Path.cwd()


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def demo(folder: Path) -> Path:
    return folder / "results/studies/demo/report.html"


@pytest.fixture(scope="module")
def paper(folder: Path) -> Path:
    return folder / "results/studies/paper/report.html"


def text(path: Path) -> str:
    """Return a page on one line, without the links of special words to their explanations."""
    page = " ".join(path.read_text(encoding="utf-8").split())
    return re.sub(r'<a class="word"[^>]*>(.*?)</a>', r"\1", page)


# Content


def test_hostile_text_is_escaped(demo: Path) -> None:
    page = text(demo)
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &#34;quoted&#34; &amp; &#39;more&#39; {{ 7 * 7 }}" in page


def test_hostile_claims_are_escaped(here: Path) -> None:
    described, files = study_files.make("demo", "t")
    frame = study_files.claims(described["runs"]).assign(claim=HOSTILE, source=HOSTILE, statistic=HOSTILE, arch=HOSTILE)
    study_files.write_frame(files.claims, frame)
    out = here / "hostile.html"
    write(out, described, files, template=study_files.template())
    assert text(out).count("<script") == 1
    assert text(out).count("&lt;script&gt;") > 4 * len(study_files.CLAIMS)


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_page_loads_nothing_from_outside_and_its_links_exist(name: str, folder: Path) -> None:
    path = folder / f"results/studies/{name}/report.html"
    page = text(path)
    assert not re.search(r"https?://|src=\"(?!data:)|@import|url\((?!#)", page)
    assert "onclick" not in page
    assert "default-src 'none'" in page
    anchors = re.findall(r' id="([^"]+)"', page)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(anchors)
    for link in re.findall(r'href="([^#"]+)"', page):
        assert (path.parent / link).exists()


def test_figures_and_tables_are_in_the_papers_order(paper: Path) -> None:
    found = re.findall(r'<figure id="([^"]+)"', text(paper))
    first = ["fig1", "fig2", "fig3", "table3", "table4", "table5", "fig4", "fig5", "b2", "fig6", "table6", "fig7"]
    then = [
        "fig8",
        "table1",
        "fig9",
        "fig10",
        "fig11",
        "table2",
        "fig12",
        "examples",
        "spread",
        "attacks",
        "padding",
        "theory",
    ]
    assert found == [*first, *then, "comparison-plot"]  # Figure 1 is the main one, before all others


def test_captions_give_the_seeds_of_what_is_shown(paper: Path) -> None:
    captions = dict(re.findall(r'<figure id="([^"]+)".*?Over ([^<]+) seeds\.', text(paper), re.DOTALL))
    found = [captions[name] for name in ("fig1", "fig7", "fig12", "table3", "table4", "table6")]
    assert found == ["3", "1", "1 to 3", "1 to 3", "1", "1 to 3"]


def test_items_without_a_section_come_last() -> None:
    drawn = {name: name for name in ("new", *FIGURES)}
    assert [section["title"] for section in sections(drawn, {})][-1] == "Further results"
    named = {name for _, figures, tables in SECTIONS for name in (*figures, *tables)}
    assert named == {*FIGURES, *study_tables.TABLE_FUNCTIONS, "b2"}


def test_numbers_come_from_the_tables(demo: Path) -> None:
    page = text(demo)
    assert "<span>0.1100</span> <span><small>± 0.0100</small></span>" in page  # 0.1 - ar / 500 + seed / 100
    assert "1297 training and 500 test images" in page
    assert page.count("by other writers than the training images, except for ten of those") == 1
    assert "15 networks on handwritten digits (8x8), trained" in page


def test_radii_in_normalised_space_are_converted_where_it_is_shown(demo: Path, paper: Path) -> None:
    words = (
        "multiply by the standard deviation. Its mean over the channels is 0.3 on digits (AR 16 is 4.8/255 in pixels)."
    )
    captions = dict(re.findall(r'<figure id="([^"]+)"(.*?)</figure>', text(demo), re.DOTALL))
    shown = {name for name, content in captions.items() if words in content}
    assert {"fig1", "fig3", "fig8", "fig12", "spread", "table1", "table3", "attacks"} <= shown
    assert not {"fig2", "fig9", "fig10", "fig11", "table2"} & shown
    assert "standard deviation (by 0.3, averaged over the channels)" in text(demo)
    assert "multiply by the standard deviation" in text(paper)


def test_settings_are_described_in_words(demo: Path, paper: Path) -> None:
    for words in (
        "PGD, random start, 10 steps of 1/4 of the strength; FGSM, start at the clean image, 1 step of 16/255 (none at",
        "1; after every epoch, every layer is projected so that its largest singular value, as the network applies it",
        "every radius and step is multiplied by the channel&#39;s standard deviation",
        "PGD, radius 32/255, 10 steps of 8/255, random start",
        "APGD with cross entropy and with the difference of logits ratio (DLR), radius 32/255, 50 steps, "
        "1 restart each",
    ):
        assert words in text(demo)
    for words in ("random resized crop", "with batch normalisation: attacks use its running statistics"):
        assert words in text(paper)
        assert words not in text(demo)


def test_times_come_from_histories_and_benchmarks(demo: Path) -> None:
    page = text(demo)
    assert (
        "The training epochs of the 15 networks took 52 s; all 3 jobs together took 2 min 13 s (4 min 26 s of CPU time)"
        in page
    )
    assert '<td data-value="512.0">512 MB</td>' in page


def test_one_seed_has_no_std(here: Path) -> None:
    described, files = study_files.make("demo", "one", seeds=(0,))
    write(here / "one.html", described, files, template=study_files.template())
    page = re.sub(r"base64,[^\"]*", "", text(here / "one.html"))
    assert "±" not in page
    assert "There is only one seed per setting" in page
    assert not re.search(r">\s*(nan|None|inf)\s*<", page)


def test_equal_input_gives_equal_bytes(here: Path, demo: Path) -> None:
    described, files = study_files.make("demo", HOSTILE)
    write(here / "again.html", described, files, template=study_files.template())
    assert (here / "again.html").read_bytes() == demo.read_bytes()


# Size


def test_too_large_page_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described, files = study_files.make("demo", "large")
    monkeypatch.setattr(page_module, "LIMIT", 1000)
    with pytest.raises(ValueError, match="but the limit is 1,000; list fewer figures"):
        write(here / "large.html", described, files, template=study_files.template())
    assert not (here / "large.html").exists()


@pytest.mark.parametrize(("large", "budget"), [(100, 10_000), (10_000, 500)], ids=["one", "all together"])
def test_too_large_svg_is_replaced_by_its_png(
    large: int, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("small", 60), ("wide", 400)):
        (tmp_path / f"{name}.svg").write_text('<svg width="500pt">' + " " * size)
        (tmp_path / f"{name}.png").write_bytes(b"png")
    monkeypatch.setattr(pictures, "_LARGE", large)
    monkeypatch.setattr(pictures, "_ALL", budget)
    found = pictures.embed_figures([tmp_path / "small.svg", tmp_path / "wide.svg"])
    assert {name: one.raster for name, one in found.items()} == {"small": False, "wide": True}
    assert found["wide"].uri == "data:image/png;base64,cG5n"


def test_figures_that_are_too_large_as_png_are_not_read(tmp_path: Path) -> None:
    for end in (".svg", ".png"):
        with (tmp_path / f"a{end}").open("wb") as file:
            file.truncate(2**40)  # without content, so it takes no space
    with pytest.raises(
        ValueError, match=r"a\.svg need 1,\d+.* bytes even as PNG, but the limit is 13,000,000; list fewer"
    ):
        pictures.embed_figures([tmp_path / "a.svg"])


# Claims


def test_the_figures_come_before_the_claims_and_each_claim_has_a_verdict(paper: Path) -> None:
    page = text(paper)
    order = ["figures", "claims", "comparison", "run", "deviations", "limits", "made", "settings", "words"]
    assert re.findall(r'<h2 id="(\w+)"', page) == order
    (contents,) = re.findall(r"<nav.*?</nav>", page)
    assert re.findall(r'href="#(\w+)"', contents) == ["top", *order]
    for _, claim, *_ in study_files.CLAIMS:
        assert claim in page


def test_claims_are_grouped_and_their_verdicts_counted(here: Path) -> None:
    runs = study_files.make("paper", "t")[0]["runs"]
    frame = study_files.claims(runs)
    groups = claims_section.group_claims(frame, runs)
    assert [group.title for group in groups] == [
        "Generalisation",
        "Margins and confidence",
        "Spectra of the layers",
        "Loss variation",
        "FGSM training",
        "ResNet-110",
        "Bound on the spectral norm",
        "Extensions",
    ]
    for key in claims_section.VERDICTS:
        assert sum(group.counts[key] for group in groups) == (frame["verdict"] == key).sum() > 0
    rows = [one for group in groups for claim in group.claims for one in claim.judged]
    assert len(rows) == (frame["verdict"] != NOT_RUN).sum()


def test_every_claim_is_counted_once(here: Path) -> None:
    runs = study_files.make("paper", "t")[0]["runs"]
    frame = study_files.claims(runs)
    counts = claims_count.count_claims(frame, runs)
    assert sum(counts.values()) == frame["id"].nunique() == 6
    rows = [
        {"id": name, "claim": name, "source": source, "dataset": "c10", "verdict": verdict}
        for name, source, verdict in (
            ("gap", "section 4.1", "holds"),
            ("gap", EXTENSION, "fails"),
            ("own", EXTENSION, NOT_RUN),
            ("all", "section 4.1", "holds"),
            ("all", "section 4.1", "seen"),
            ("all", "section 4.1", NOT_RUN),
            ("some", "section 4.1", "holds"),
            ("some", "section 4.1", "undecided"),
            ("one", "section 4.1", "seen"),
        )
    ]
    assert claims_count.summary_sentences(pd.DataFrame(rows), []) == [
        "Of 5 claims (1 of our own, the others of the paper), 1 holds wherever several seeds test it, 1 fails in at "
        "least one setting, 1 is undecided in at least one setting, 1 is seen in networks of one seed and 1 has no "
        "network here.",
        "What does not hold: gap (c10).",
    ]


def test_a_network_of_one_strength_is_not_called_not_run() -> None:
    row = judged_row(NOT_RUN, arch="resnet56", train_attack="pgd", space="normalised", spectral_norm=None)
    row |= {"ar_low": 4, "ar_high": 16}
    run = {key: row[key] for key in ("dataset", "arch", "train_attack", "space", "spectral_norm")} | {"ar": 16}
    elsewhere, standard = run | {"space": "pixel"}, run | {"ar": 0}

    def reason(*runs: dict[str, Any]) -> str:
        (found,) = claims_section.with_reasons([row], runs)
        return found["verdict"]

    assert reason(run, elsewhere) == reason(run, standard) == claims_section.SECOND_STRENGTH
    assert reason(elsewhere, standard) == reason() == NOT_RUN
    assert reason(run, run | {"ar": 4}) == NOT_RUN  # what lacks is the setting that it is compared with
    listed = claims_section.untested_claims(pd.DataFrame([row, row | {"space": "pixel"}]), [run])
    (one,), (other,) = (listed[key] for key in (claims_section.SECOND_STRENGTH, NOT_RUN))
    assert (one.text, one.settings) == ("The gap falls.", ("c10, resnet56, normalised space",))
    assert other.settings == ("c10, resnet56",)
    counted = claims_count.summary_sentences(pd.DataFrame([row]), [run])
    assert counted == ["Of 1 claim of the paper, 1 needs a network of a second strength."]


def judged_row(verdict: str, **more: Any) -> dict[str, Any]:
    """Return a row of claims.parquet that several seeds judged."""
    row = {"id": "ge-gap-falls", "claim": "The gap falls.", "source": "section 4.1", "dataset": "c10", "statistic": "t"}
    row |= {"verdict": verdict, "n_seeds": 3, "effect": -0.1, "ci_low": -0.3, "ci_high": 0.1, "p": 0.2, "q": 0.3}
    return row | {"at_low": 0.5, "at_high": 0.4, "smallest_effect": 0.2, "ci_over": "seeds"} | more


def test_the_summary_says_what_chance_alone_would_decide() -> None:
    rows = [judged_row("undecided") for _ in range(38)]
    rows += [judged_row("holds", q=0.2), judged_row("holds", q=0.01)]
    rows += [judged_row("seen", n_seeds=1, q=0.9) for _ in range(5)]  # one seed decides nothing
    rows += [judged_row("holds", id="prob-mostly-at-ends", q=0.9)]  # is not about a change
    (found,) = [sentence for sentence in claims_count.remarks(pd.DataFrame(rows)) if "chance" in sentence]
    assert found.startswith("40 of these verdicts are about a change with the strength, by several seeds.")
    assert "chance alone would decide about 2.0 of them." in found
    assert "Of those decided here, 1 would not be at a false discovery rate of 5 % (q above 0.05)." in found
    one = claims_count.remarks(pd.DataFrame([judged_row("seen", n_seeds=1)]))
    assert not any("chance" in sentence for sentence in one)


def test_the_summary_says_why_two_seeds_leave_most_claims_undecided() -> None:
    def said(n_seeds: int, verdict: str = "undecided") -> list[str]:
        rows = [judged_row(verdict, n_seeds=n_seeds), judged_row("holds", id="own", n_seeds=n_seeds)]
        return [one for one in claims_count.summary_sentences(pd.DataFrame(rows), []) if "two seeds" in one]

    assert said(3) == said(2, "holds") == []
    (sentence,) = said(2)
    assert sentence.startswith("1 of the 2 verdicts by several seeds are undecided, because two seeds say little")


def test_the_summary_names_claims_that_the_study_could_not_have_decided() -> None:
    rows = [judged_row("undecided", smallest_effect=0.6), judged_row("undecided", claim="Another falls.")]
    rows += [judged_row("undecided", id="train-loss-rises", claim="It rises.", smallest_effect=0.6)]
    (found,) = [sentence for sentence in claims_count.remarks(pd.DataFrame(rows)) if "too few seeds" in sentence]
    assert found.endswith("the lower strength would have been decided: The gap falls (c10).")


def test_a_setting_names_steps_that_go_the_other_way_the_ends_and_the_smallest_effect() -> None:
    row = judged_row("undecided", strengths="4, 8, 16", other_way="AR 8 to 16 (its interval excludes 0)")
    row |= {"ends_effect": -0.05, "ends_ci_low": -0.2, "ends_ci_high": 0.1, "se_seeds": 0.03, "se_images": 0.04}
    (one,) = claims_section.group_claims(pd.DataFrame([row]), [])[0].claims[0].judged
    minus = "\N{MINUS SIGN}"
    assert one.notes == (
        "The other way: AR 8 to 16 (its interval excludes 0).",
        "Strengths: AR 4, 8, 16.",
        f"The two ends alone: {minus}0.05 ({minus}0.20 to 0.10).",
        "An observed effect larger than ±0.20 would have been decided.",
    )
    assert (one.errors, one.q, one.over) == (("seeds 0.030", "images 0.040"), "0.300", "seeds")
    (two,) = (
        claims_section.group_claims(pd.DataFrame([row | {"strengths": "4, 16", "other_way": None}]), [])[0]
        .claims[0]
        .judged
    )
    assert two.notes == ("Strengths: AR 4, 16.", "An observed effect larger than ±0.20 would have been decided.")


def test_decimals_of_an_effect_follow_from_the_width_of_its_interval() -> None:
    row = {"id": "svstd", "claim": "c", "source": "s", "dataset": "c10", "statistic": "t", "ci_over": "seeds"}
    row |= {"n_seeds": 2, "verdict": "holds", "effect": -0.12345, "ci_low": -0.1334, "ci_high": -0.1134}
    frame = pd.DataFrame([row, row | {"effect": 41.0, "ci_low": None, "ci_high": None, "verdict": "undecided"}])
    (claim,) = claims_section.group_claims(frame, [])[0].claims
    first, second = claim.judged
    minus = "\N{MINUS SIGN}"
    assert (first.effect, first.interval) == (f"{minus}0.123", f"{minus}0.133 to {minus}0.113")
    assert (second.effect, second.interval, second.n_seeds) == ("41", "", "2")
    row |= {"effect": -0.0001, "ci_low": -0.5, "ci_high": 0.5}
    assert claims_section.group_claims(pd.DataFrame([row]), [])[0].claims[0].judged[0].effect == "0.0"
    row |= {"effect": -0.0239, "ci_low": -0.0476, "ci_high": -0.00023}  # excludes 0, also after rounding
    interval = claims_section.group_claims(pd.DataFrame([row]), [])[0].claims[0].judged[0].interval
    assert interval == f"{minus}0.0476 to {minus}0.0002"


def test_claims_that_were_not_run_are_one_folded_line(demo: Path) -> None:
    page = text(demo)
    assert "<h3>ResNet-110</h3>" not in page
    assert ">not run<" not in page
    words = "Not run, because this study has no such networks"
    (part,) = re.findall(rf'<details class="untested"><summary>{words}: 6 claims</summary>(.*?)</details>', page)
    assert part.count("<li>") == 6
    assert "c100, resnet110, pixel" not in part
    assert "c100, resnet110" in part


def test_unknown_verdicts_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown verdict maybe"):
        claims_section.count_verdicts([{"verdict": "maybe"}])


# Cautions


def test_failed_trainings_and_hidden_gradients_are_named(paper: Path, demo: Path) -> None:
    assert (
        "c100/ar16-fgsm has collapsed: after training with FGSM, it does not withstand PGD (adversarial accuracy 0.5 %)"
        in text(paper)
    )
    assert "collapsed" not in text(demo)
    row = {"dataset": "d", "variant": "ar64", "train_attack": "pgd", "ar": 64, "train_acc": 10.2, "pgd_acc": None}
    row |= {"masked": []}
    assert cautions([row], {"d": 10}) == [
        "d/ar64 has hardly learned anything: its training accuracy is 10.2 %, and guessing gives 10.0 %."
    ]
    assert cautions([row | {"train_acc": 90.0}], {"d": 10}) == []
    (hidden,) = cautions([row | {"train_acc": 90.0, "masked": ["large_eps", "one_step"]}], {"d": 10})
    assert hidden.startswith("d/ar64 hides its gradients")
    assert hidden.endswith("Failed checks (masking.parquet): large_eps, one_step.")
    assert "c100/ar16-fgsm hides its gradients" in text(paper)
    assert "hides its gradients" not in text(demo)


def test_an_attack_that_is_too_weak_is_named_at_the_top(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "too weak" not in text(demo)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(study_files.AUDIT, "found", [0.0, 99.8])
    monkeypatch.setitem(study_files.AUDIT, "passed", [True, False])
    weak = text(study_files.page("demo", "The demo"))
    named = "even of networks that nothing protects, digits/ar0 (99.8 %). Raise eps or step under evaluation"
    assert named in weak.partition("</header>")[0]
    assert "All of them hold, except that the attack is too weak for the networks named at the top" in weak


# Deviations and limits


def settings_of_run(dataset: str, variant: str, **changes: Any) -> dict[str, Any]:
    """Return the settings of a run, in the form that deviations and limits expect."""
    resolved = run_settings(study_files.CONFIG, dataset, variant)
    return resolved | {"paper": study_files.CONFIG["datasets"][dataset].get("paper")} | changes


@pytest.mark.parametrize(
    ("dataset", "variant", "tables", "more"),
    [
        ("digits", "ar8", (), ()),
        ("digits", "ar8", ("theory",), ("Lemma 3.1", "Theorem 3.1")),
        ("digits", "ar8-fgsm", (), ("Start of FGSM",)),
        ("digits", "ar8-sn1", (), ("Bound on the spectral norm",)),
        ("c10small", "ar8", (), ()),
        ("digits", "ar8-resnet8nobias", (), ("Channels that a stage adds",)),
        ("c10jpeg", "ar8", (), ("Perturbation space", "Number of layers", "Table 3, adversarial accuracy")),
        (
            "c10",
            "ar4-sn5",
            (),
            (
                *("Perturbation space", "Number of layers", "Table 3, adversarial accuracy", "Three loss gaps"),
                "Bound on the spectral norm",
            ),
        ),
        ("c100", "ar8", (), ("Perturbation space", "Number of layers", "B.2, CIFAR-100")),
        ("c100", "ar8-resnet110", (), ("Perturbation space", "Number of layers", "Three loss gaps")),
        ("tin", "ar8", (), ("Perturbation space", "Batch normalisation under attack")),
    ],
)
def test_deviations_follow_from_the_settings_of_run(
    dataset: str, variant: str, tables: tuple[str, ...], more: tuple[str, ...]
) -> None:
    plain = {one.point for one in deviations([settings_of_run("digits", "ar8")], ())}
    found = {one.point for one in deviations([settings_of_run(dataset, variant)], tables)}
    fixup = {"Fixup's scalars"}
    assert found - plain == set(more)
    assert plain - fixup <= found
    assert fixup <= found or dataset == "tin"
    assert not fixup <= found or dataset != "tin"
    assert "1x1 convolutions and the linear layer" in plain


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ("attacks", "in the table of attacks"),
        ("padding", "table of zero-padded spectra shows"),
        ("theory", "printed sum is reported"),
        ("b2", "B.2 over the convolutions"),
    ],
)
def test_texts_mention_a_table_only_if_the_study_lists_it(shown: str, words: str) -> None:
    def texts(tables: tuple[str, ...]) -> str:
        one = settings_of_run("c10", "ar8")
        parts = limits([one], {"c10": "CIFAR-10"}, counts=[1], tables=tables)
        return " ".join([*parts, *(found.decision for found in deviations([one], tables))])

    assert words in texts((shown,))
    assert words not in texts(())


def test_limits_follow_from_the_data(demo: Path) -> None:
    def texts(dataset: str, **changes: Any) -> str:
        one = settings_of_run(dataset, "ar8", **changes)
        return " ".join(limits([one], {dataset: "These"}, counts=[1], tables=()))

    foreign = "The paper does not use These; it uses"
    other = "These stands for the paper's CIFAR-10: it has the same images, but from other files"
    part = "These is only a part of the paper's CIFAR-10"
    found = {
        name: [words in texts(name) for words in (foreign, part, other)] for name in ("c10", "c10jpeg", "c10small")
    }
    assert found == {"c10": [False] * 3, "c10jpeg": [False, False, True], "c10small": [True, False, False]}
    assert part in texts("c10", data=settings_of_run("c10", "ar8")["data"] | {"max_train": 100})
    not_comparable = "only the directions of changes can be"
    assert (not_comparable in texts("c10jpeg"), not_comparable in texts("c10small")) == (False, True)
    assert "The paper does not use handwritten digits (8x8)" in text(demo)
    assert "resnet8 is far smaller than the paper's networks" in texts("digits")
    own = texts("digits", arch="mynet", factory={"callable": "mynet:MyNet", "arguments": {}})  # of any size
    assert "The paper does not use mynet; it uses ResNet-56" in own
    assert "smaller" not in own
    both = [settings_of_run("digits", "ar8"), settings_of_run("digits", "ar8-fixup8")]
    said = " ".join(limits(both, {"digits": "These"}, counts=[1], tables=()))
    assert "resnet8 and fixup8 are far smaller than the paper's networks" in said


def test_each_attack_that_was_used_is_described_with_the_space_of_its_radii() -> None:
    meta = {"shape": [3, 32, 32], "n_train": 1, "n_test": 1, "classes": 10, "std": [0.2] * 3}
    one, other = settings_of_run("c10", "ar8"), settings_of_run("c10", "ar8-pixel")
    stronger = settings_of_run("c10", "ar16") | {"evaluation": one["evaluation"] | {"eps": 16.0}}
    assert describe_data(meta, [one])["Evaluation attack"] == describe_attack(one["evaluation"])
    both = describe_data(meta, [one, other])["Evaluation attack"]
    assert both == f"{describe_attack(one['evaluation'])} (in the space of each run)"
    assert describe_data(meta, [one, stronger])["Evaluation attack"].count("; or PGD, radius 16/255") == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog\x1b[1m"], "2 classes (cat, dog\\x1b[1m)"),
        ([f"c{label}" for label in range(12)], "12 classes (c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 2 more)"),
        (["x" * 999, 7], f"2 classes ({'x' * 100}, 7)"),  # as received data may have them
        (["0", "1", "2"], "3 classes"),
        (None, "3 classes"),
        ("abc", "3 classes"),
    ],
)
def test_the_first_names_of_classes_are_listed(names: object, expected: str) -> None:
    meta = {
        "shape": [3, 32, 32],
        "n_train": 1,
        "n_test": 1,
        "classes": int(expected.split(maxsplit=1)[0]),
        "std": [0.2] * 3,
    }
    said = describe_data(meta | {"class_names": names}, [settings_of_run("c10", "ar8")])["Data"]
    assert said.endswith(f", 3 channels, {expected}")


def test_the_page_names_the_parts_of_networks_that_have_no_singular_values(here: Path) -> None:
    described, files = study_files.make("demo", "t")
    parts = {f"block{index:02}": f"Gate{index} is not linear" for index in range(12)}
    path = Path(described["runs"][0]["folder"]) / "svstd.parquet"
    parquet.write_frame(path, parquet.read(path), study_files.META | {"unmeasured": parts})
    write(here / "gated.html", described, files, template=study_files.template())
    page = text(here / "gated.html")
    assert "These parts of resnet8 have no singular values here: block00 (Gate0 is not linear), block01" in page
    assert "block09 (Gate9 is not linear) and 2 more." in page
    assert describe_unmeasured({"resnet8": {}}) == []


# Comparison


def test_every_number_of_the_paper_is_in_the_page(paper: Path, demo: Path, here: Path) -> None:
    frame = study_files.comparison(study_files.make("paper", "t")[0]["runs"])
    found = comparison_section.comparison_blocks(frame)
    assert sum(block.cells for block in found) == len(frame)
    compared = (frame["status"] != NOT_RUN).sum()
    assert f"{compared} of the {len(frame)} numbers that the paper prints are compared with a number" in text(paper)
    assert "Of these, 6 are marked as doubtful in the paper itself" in text(paper)
    assert frame["note"].notna().sum() == 6
    assert '<span class="paper">0.4372†</span>' in text(paper)
    assert "† repeats CIFAR-10&#39;s sum" in text(paper)
    assert re.findall(r"<h3>([^<]+) of the paper</h3>", text(paper)) == [*(f"Table {n}" for n in range(1, 7)), "B.2"]
    assert "<h3>B.2</h3>" in text(demo)
    assert f"The paper prints {len(frame)} numbers, but none for the networks of this study" in text(demo)
    assert f"<summary>{len(frame)} numbers of the paper whose networks are not in this study" in text(demo)


def test_only_doubtful_numbers_that_are_compared_are_counted(here: Path) -> None:
    frame = study_files.comparison(study_files.make("paper", "t")[0]["runs"]).head(3)
    frame = frame.assign(note="odd", ours_mean=[1.0, None, None])
    assert comparison_section.count_sentence(frame) == (
        "1 of the 3 numbers that the paper prints is compared with a number of this study. "
        "Of these, 1 is marked as doubtful in the paper itself, probably because of misprints or rounding."
    )
    sentences = comparison_section.count_sentence(frame.assign(ours_mean=[1.0, 1.0, None]))
    assert "Of these, 2 are marked as doubtful" in sentences


def test_runs_that_are_missing_are_listed_at_the_top_and_the_conventions_that_are_there_are_ranked(here: Path) -> None:
    described, files = study_files.make("conventions", "t")
    for run in described["runs"]:
        columns = {
            name: [value] for name, value in study_files._make_row("attacks", attack="pgd", split="test").items()
        }
        parquet.write(Path(run["folder"]) / "attacks.parquet", "attacks", columns, {})
    names = ["c10/ar4", "tin/ar0"]
    gone = [run | {"epochs": 200} for run in described["runs"] if f"{run['dataset']}/{run['variant']}" in names]
    described["runs"] = [run for run in described["runs"] if f"{run['dataset']}/{run['variant']}" not in names]
    study_files.write_frame(files.comparison, study_files.comparison(described["runs"]))
    write(
        here / "some.html",
        described | {"not_run": gone, "not_made": ["table5"]},
        files,
        template=study_files.template(),
    )
    page = text(here / "some.html")
    folded = "<summary>Not run yet, and therefore not shown: 2 of the 11 networks of this study</summary>"
    assert f"{folded} <p>These are c10/ar4, tin/ar0. " in page
    assert "These figures and tables cannot be made without them: table5." in page
    assert "Which conventions are nearest" in page
    ranked = re.findall(r'<th scope="row">(c10[^<]*)</th>', page[page.index("Which conventions are nearest") :])
    assert {
        "c10, resnet56, normalised space",
        "c10, resnet56nobias, normalised space",
        "c10wd, resnet56, normalised space",
    } <= set(ranked)
    write(here / "all.html", described, files, template=study_files.template())
    assert "Not run yet" not in text(here / "all.html")


def test_the_page_says_at_its_top_what_it_assumes_where_the_paper_is_silent(paper: Path, demo: Path) -> None:
    top = text(paper).partition("</header>")[0]
    assert "This study measures radii in these spaces: normalised, and its residual networks keep Fixup&#39;s" in top
    assert "The paper does not say clearly" not in text(demo)
    both = [settings_of_run("c10", name) for name in ("ar8-pixel", "ar8-fixup56-symmetric", "ar8-resnet56nobias")]
    assert (
        "in these spaces: pixel, symmetric, normalised, and of its residual networks, some keep Fixup's biases and "
        "omit its multipliers, some have all of Fixup's scalars, some have none of Fixup's scalars."
    ) in describe_conventions(both)
    elsewhere = [settings_of_run("c10", "ar8-evalpixel") | {"paper": "c10"}]
    assert "in these spaces: normalised (evaluated in pixel), and" in describe_conventions(elsewhere)


def test_radii_of_training_and_of_attacks_are_converted_into_pixels() -> None:
    def describe(*runs: tuple[str, int]) -> list[str]:
        listed = [{"dataset": "c10", "space": space, "ar": ar} for space, ar in runs]
        return describe_radii(listed, {"c10": [0.2, 0.25, 0.3]})

    normalised = (
        "A radius in normalised space is one of pixels divided by the standard deviation of their channel. To get it "
        "in pixels, multiply by the standard deviation. Its mean over the channels is 0.25 on c10"
    )
    assert describe(("pixel", 8)) == []
    assert describe(("normalised", 8), ("normalised", 16), ("pixel", 32)) == [
        f"{normalised} (AR 16 is 4/255 in pixels)."
    ]
    assert describe(("normalised", 0)) == describe(("pixel, evaluated in normalised", 8)) == [f"{normalised}."]
    assert describe(("pixel, evaluated in symmetric", 8)) == ["A radius in symmetric space is half as large in pixels."]


def test_number_compared_in_two_spaces_counts_once_and_the_nearer_space_is_named(here: Path) -> None:
    described, files = study_files.make("paper", "t")
    frame = study_files.comparison(described["runs"])
    both = pd.concat([frame, frame.assign(space="pixel", ours_mean=frame["paper"], difference=0.0)])
    assert comparison_section.count_sentence(both) == comparison_section.count_sentence(frame)
    study_files.write_frame(files.comparison, both)
    write(here / "both.html", described, files, template=study_files.template())
    assert describe_closer_space(both)
    assert describe_closer_space(both) in text(here / "both.html")
    assert "c10, resnet56, normalised space" in text(here / "both.html")


def test_pair_shows_our_number_the_papers_and_the_difference() -> None:
    row = {"table": "B.2", "dataset": "c10", "run_dataset": "c10wd", "arch": "resnet56", "train_attack": "pgd"}
    row |= {"space": "pixel", "spectral_norm": None, "ar": 4, "ar_high": 16, "metric": "test_acc", "paper": 80.0}
    row |= {"ours_mean": 81.25, "ours_std": 0.5, "n_seeds": 2, "difference": 1.25, "status": "", "note": None}
    (block,) = comparison_section.comparison_blocks(pd.DataFrame([row]))
    assert block.setting == "c10, resnet56 (in this study: c10wd)"
    assert (block.strengths, block.n_seeds, block.run) == (("4 → 16",), (2,), True)
    assert block.rows[0][1] == (comparison_section.ComparisonCell("81.25", "0.50", "80.00", "+1.25", ""),)


# Tables


def test_table_blocks_follow_settings(here: Path) -> None:
    runs = study_files.make("demo", "t")[0]["runs"]
    summary = parquet.read(Path("results/studies/demo/tables/table3_summary.parquet")).to_pandas()
    found = {block["name"]: block for block in table_blocks(summary)}
    assert list(found) == ["digits, resnet8", "digits, resnet8, normalised space"]
    assert found["digits, resnet8"]["columns"] == ["0", "8", "16", "32"]
    assert {run["ar"] for run in runs} == {0, 8, 16, 32}
    rows = found["digits, resnet8"]["rows"]
    assert [row["quantity"].label for row in rows][:3] == ["training accuracy", "test accuracy", "error gap"]
    assert found["digits, resnet8, normalised space"]["rows"][0]["cells"][0].std == ""


def test_column_names_distinguish_rows_of_the_same_strength(here: Path) -> None:
    summary = parquet.read(Path("results/studies/demo/tables/b2_summary.parquet")).to_pandas()
    assert table_blocks(summary)[0]["columns"] == ["8 → 32, convolutions", "8 → 32, all"]


def test_constants_are_separated_from_a_table() -> None:
    keys = {"dataset": "d", "arch": "a", "train_attack": "pgd", "space": "pixel", "spectral_norm": None, "n_seeds": 1}
    values = {"eta_mean": 0.05, "eta_std": None, "w_min_std": None}
    summary = pd.DataFrame([keys | values | {"ar": ar, "w_min_mean": ar} for ar in (4, 8)])
    left, same = split_constants(summary)
    assert same == [f"{describe('eta').label}: {describe('eta').text(0.05)}"]
    assert [name for name in left.columns if name.endswith("_mean")] == ["w_min_mean"]
    assert split_constants(summary[:1])[1] == []


def test_cells_and_durations() -> None:
    assert format_cell(describe("loss_gap"), -0.01234, 0.5).mean == "\N{MINUS SIGN}0.0123"
    dash = "\N{EN DASH}"
    assert format_cell(describe("pgd_acc"), float("nan"), float("nan")).mean == dash
    assert [format_duration(seconds) for seconds in (None, 41.4, 185, 7800)] == [
        dash,
        "41 s",
        "3 min 05 s",
        "2 h 10 min",
    ]


# Provenance


@pytest.mark.parametrize(
    ("recorded", "description"),
    [(None, "not recorded"), ("0123", "older code"), (provenance.code_hash(), "current code")],
    ids=["none", "old", "new"],
)
def test_code_of_the_training(
    recorded: str | None, description: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    described = study_files.make("demo", "t", seeds=(0,))[0]
    run = described["runs"][1]
    path = Path(run["folder"]) / "history.parquet"
    meta = study_files.META | ({"code_hash": recorded, "torch": "2.14.0", "device": "cpu"} if recorded else {})
    parquet.write(path, "history", parquet.read(path).to_pydict(), meta)
    (account,) = run_accounts([run], described["settings"])
    assert account.code == description
    assert account.torch == ("2.14.0" if recorded else "not recorded")
    assert (account.epochs, account.epochs_s, account.train_s) == (2, 3.5, None)


def test_the_report_names_networks_of_other_settings_and_those_that_cannot_be_verified(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    described, _ = study_files.make("demo", "t", seeds=(0,))
    settings = {name: training_settings(own) for name, own in described["settings"].items()}
    for run in described["runs"]:
        own = copy.deepcopy(settings[f"{run['dataset']}/{run['variant']}"])
        if run["variant"] == "ar8":
            own["training"]["epochs"] = 7
        meta = {"settings": json.dumps(own), "code_hash": provenance.code_hash()}
        meta |= {} if run["variant"] == "ar16" else {"probe_images": 8}
        path = Path(run["folder"]) / "history.parquet"
        parquet.write(path, "history", parquet.read(path).to_pydict(), study_files.META | meta)
    said = code_sentences(run_accounts(described["runs"], described["settings"]))
    assert "other settings than those below: digits/ar8 (training.epochs was 7, is 20)." in said
    assert f"For 1 of {len(settings)} runs, the checkpoint holds no logits to compare with" in said
    assert said.startswith("The code that decides the weights has not changed since training.")


def test_costs_are_sums_over_jobs(here: Path) -> None:
    run = {"dataset": "digits", "variant": "ar8"}
    costs = {one.rule: one for one in rule_costs("demo", [run], ["prepare", "train", "sv", "figure"])}
    assert list(costs) == ["train", "sv", "figure"]
    assert costs["train"] == RuleCost("train", 1, 125.2, 125.2, 250.4, 512.0)


def test_drawn_rules_are_those_of_the_workflow(tmp_path: Path) -> None:
    dot = snakemake(copy_tree(tmp_path / "tree"), "--rulegraph", "dot", "--", "demo")
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', dot))
    real: dict[str, set[str]] = {name: set() for name in names.values()}
    for source, rule in re.findall(r"(\d+) -> (\d+)", dot):
        real[names[rule]].add(names[source])
    implied = {rule: {one for source in real[rule] for one in _above(real, source)} for rule in real}
    least = {rule: real[rule] - implied[rule] for rule in real if rule != "demo"}
    assert {rule: set(sources) for rule, sources in RULE_INPUTS.items()} == least
    boxes = {box["name"]: box for box in rule_graph()["boxes"]}
    assert all(boxes[source]["y"] < boxes[name]["y"] for name, sources in RULE_INPUTS.items() for source in sources)


def _above(graph: dict[str, set[str]], rule: str) -> set[str]:
    """Return all rules on which a rule depends, directly or not."""
    return graph[rule] | {one for source in graph[rule] for one in _above(graph, source)}


def test_common_and_differing_settings_are_separated() -> None:
    settings = {"a": {"ar": 0, "attack": None}, "b": {"ar": 8, "attack": {"steps": 10, "eps": 8.0}}}
    found = shared_settings({run: {"width": 16, "variant": run, **one} for run, one in settings.items()})
    assert found.common == {"width": "16"}
    assert found.differing == ("ar", "attack.steps", "attack.eps")
    assert found.by_run == {"a": ("0", "none", "none"), "b": ("8", "10", "8")}


# Captions


def test_captions_are_valid_with_and_without_variables() -> None:
    captions = sorted(study_files.PAGES.glob("*.rst"))
    assert {f"{name}.rst" for name in (*FIGURES, *study_tables.TABLE_FUNCTIONS, "b2", "comparison")} <= {
        path.name for path in captions
    }
    for path in captions:
        for variables in (
            {},
            {"n_seeds": "1"},
            {"n_seeds": "1 to 3"},
            {"n_seeds": "3", "compare": [8, 32], "attack": "PGD"},
        ):
            lines = caption(path, variables)
            assert not any(re.search("{{|{%", line) for line in lines)
            docutils.core.publish_string("\n\n".join(lines), settings_overrides={"halt_level": Reporter.WARNING_LEVEL})


def test_captions_of_snakemakes_own_report_exist() -> None:
    rules = study_files.ROOT / "workflow/rules"
    captions = [path for file in rules.glob("*.smk") for path in re.findall(r'caption="([^"]+)"', file.read_text())]
    assert len(captions) >= 3
    # Snakemake does not fill in wildcards in these paths, so each must exist as it is written.
    assert [path for path in captions if not (rules / path).exists()] == []


def test_empty_caption_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fig1.rst"
    path.write_text("{% if n_seeds is defined %}{% endif %}\n")
    with pytest.raises(ValueError, match=r"fig1\.rst: the caption is empty"):
        caption(path, {})


# Browser


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("name", ["demo", "paper"])
def test_page_works_offline(page: Page, name: str, width: int, folder: Path) -> None:
    listed = len(study_files.CONFIG["studies"][name]["figures"])
    path = folder / f"results/studies/{name}/report.html"
    assert_works_offline(page, path, width=width, figures=listed + (name == "paper"))
    assert page.title() == {"demo": HOSTILE, "paper": "The paper"}[name]


TEXTS = (  # texts of a user with markup, templates or mathematics; the page must show them unchanged
    "<script>window.hit = 1</script>",
    "\"><img src=x onerror='window.hit = 1'>",
    "</title></style></textarea><svg onload=window.hit=1>",
    "<a href='javascript:window.hit=1'>&amp;</a>",
    "{{ 7 * 7 }}{% raw %}",
    "$x^2$ =1+1",
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
WATCH = "window.broken = []; addEventListener('securitypolicyviolation', one => broken.push(one.effectiveDirective))"


@pytest.fixture
def watched(page: Page) -> Iterator[Page]:
    """Open a browser page that records what its content security policy blocks."""
    own = page.context.browser.new_page()
    own.add_init_script(WATCH)
    yield own
    own.close()


@pytest.mark.parametrize("policy", [True, False])
@pytest.mark.parametrize("hostile", TEXTS)
def test_texts_of_the_user_are_shown_unchanged_and_run_nothing(
    hostile: str, policy: bool, here: Path, watched: Page
) -> None:
    described, files = study_files.make("demo", hostile)
    described["titles"] = {"digits": hostile}
    for settings in described["settings"].values():
        settings["factory"] = {"callable": hostile, "arguments": {"note": hostile}}
    study_files.write_frame(files.claims, study_files.claims(described["runs"]).assign(claim=hostile, source=hostile))
    out = here / "texts.html"
    write(out, described, files, template=study_files.template())
    if not policy:  # escaping alone must be enough
        out.write_text(POLICY.sub("", out.read_text(encoding="utf-8")), encoding="utf-8")
    watched.goto(out.as_uri())
    watched.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert watched.evaluate("[window.hit, document.scripts.length, broken]") == [None, 1, []]
    assert watched.title() == hostile
    assert watched.inner_text("h1") == hostile
    shown = watched.inner_text("body")
    assert min(shown.count(hostile), shown.count(hostile[0].upper() + hostile[1:])) > 8


@pytest.mark.parametrize("policy", [True, False])
def test_content_security_policy_blocks_everything_from_outside(
    policy: bool, here: Path, demo: Path, watched: Page
) -> None:
    page = demo.read_text(encoding="utf-8")
    with serving(here / f"outside{policy}") as outside:
        (here / f"outside{policy}/x.js").write_text("window.hit = 1")
        at = outside.url("x.js")
        slipped = (
            f"<base href='{at}'><script>window.hit = 1</script><script src='{at}'></script><img src='{at}'>"
            f"<img src=x onerror='window.hit = 1'><iframe src='{at}'></iframe><link rel=stylesheet href='{at}'>"
            f"<style>@import '{at}'; h1 {{background: url('{at}')}}</style><object data='{at}'></object>"
            f"<video src='{at}'></video><form action='{at}'></form>"
        )
        (here / "slipped.html").write_text((page if policy else POLICY.sub("", page)) + slipped, encoding="utf-8")
        watched.goto((here / "slipped.html").as_uri())
        hit, broken = watched.evaluate("[window.hit, broken]")
        if policy:
            with watched.expect_console_message(lambda message: "form-action" in message.text, timeout=5000):
                watched.evaluate("document.forms[0].submit()")
            assert (hit, outside.requests) == (None, 0)
            kinds = {"script-src-elem", "script-src-attr", "img-src", "frame-src", "style-src-elem", "media-src"}
            assert set(broken) == kinds | {"object-src", "base-uri"}
        else:
            assert hit == 1
            assert outside.requests > 5
            assert broken == []


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "1", "{", "\udcff"])
def test_a_description_of_data_that_is_none_is_named(content, tmp_path):
    path = tmp_path / "meta.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"^{path} .*; make it again: snakemake -c1 --force {path}"):
        read_meta(path)
