"""The report: right numbers, honest verdicts, hostile text made harmless, and a page that a browser shows offline."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import docutils.core
import numpy as np
import pytest
import yaml
from docutils.utils import Reporter
from playwright.sync_api import Page
from test_figure import COMPARE, META, make_runs

from robreg import config, job, provenance, study, table
from robreg.figure import FIGURES, draw
from robreg.finding import Point, findings, judge
from robreg.quantity import cell, describe, duration
from robreg.report import blocks, caption, write

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
TEMPLATE = ROOT / "workflow/report/report.html.j2"
HOSTILE = "<script>alert(1)</script> \"quoted\" & 'more' {{ 7 * 7 }}"


def make_report(folder: Path, title: str, seeds: tuple[int, ...] = (0, 1, 2), figures: Iterable[str] = FIGURES) -> Path:
    """Make a study's figures, tables and report below folder."""
    runs = make_runs(folder / "results", seeds=seeds)
    out = folder / "results/studies/demo"
    for name in figures:
        draw(name, runs, compare=COMPARE, svg=out / f"figures/{name}.svg", png=out / f"figures/{name}.png")
    for name in ("table1", "table3"):
        study.record(name, runs, folder=out / "tables", study="demo")
    meta = folder / "data/prepared/digits/meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"n_train": 1297, "n_test": 500, "shape": [1, 8, 8], "classes": 10}))
    described = {"name": "demo", "title": title, "runs": runs, "compare": list(COMPARE), "titles": {"digits": title}}
    described["settings"] = {
        f"digits/{run['variant']}": config.settings(CONFIG, "digits", run["variant"]) for run in runs
    }
    drawn, made = sorted(out.glob("figures/*.svg")), sorted(out.glob("tables/*.parquet"))
    for name in ("report.html", "again.html"):
        write(out / name, described, template=TEMPLATE, figures=drawn, tables=made, data=[meta])
    return out / "report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    spent = folder / "benchmarks/train/digits/ar8.tsv"
    spent.parent.mkdir(parents=True)
    spent.write_text("s\th:m:s\tmax_rss\n125.2\t0:02:05\t512.00\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return make_report(folder, HOSTILE)
    finally:
        os.chdir(before)


def text(report: Path) -> str:
    return report.read_text(encoding="utf-8")


# Content


def test_hostile_text_is_escaped(report: Path) -> None:
    page = text(report)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &#34;quoted&#34; &amp; &#39;more&#39; {{ 7 * 7 }}" in page


def test_nothing_is_loaded_from_elsewhere(report: Path) -> None:
    page = text(report)
    assert not re.search(r"https?://|src=\"(?!data:)|@import|url\(", page)
    assert "default-src 'none'" in page
    for link in re.findall(r'href="([^#"]+)"', page):
        assert (report.parent / link).exists()


def test_figures_and_tables_are_in_the_papers_order(report: Path) -> None:
    found = re.findall(r'<figure id="(\w+)"', text(report))
    assert found == ["fig1", "fig3", "table3", "fig4", "fig5", "fig8", "table1", "fig12"]


def test_numbers_come_from_the_tables(report: Path) -> None:
    page = " ".join(text(report).split())
    assert "the loss gap goes from 0.1100 to 0.0460 nats" in page  # 0.1 - ar / 500 + seed / 100, mean over seeds
    assert "<span>0.1100</span> <span><small>± 0.0100</small></span>" in page
    assert "1297 training and 500 test images" in page
    assert "PGD, random start, 10 steps of 1/4 of the strength (none at AR 0)" in page
    assert "PGD, radius 32/255, 10 steps of 8/255, random start" in page
    assert "over 3 seeds" in page


def test_times_come_from_histories_and_benchmarks(report: Path) -> None:
    page = text(report)
    assert "networks were trained in 42 s of epochs" in page  # 12 runs of 3.5 s
    assert "2 min 05 s" in page
    assert "512 MB" in page


def test_one_seed_has_no_std(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = text(make_report(tmp_path, "one", seeds=(0,), figures=["fig3", "fig8"]))
    assert "±" not in page
    assert "One seed" in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)


def test_equal_input_gives_equal_bytes(report: Path) -> None:
    assert report.with_name("again.html").read_bytes() == report.read_bytes()


# Findings


def points(*means: float, std: float = 0.1) -> list[Point]:
    return [Point(8 * index, mean, std) for index, mean in enumerate(means)]


@pytest.mark.parametrize(
    ("means", "wanted", "verdict"),
    [
        ((3, 2, 1), "falls", "agrees"),
        ((3, 1, 2), "falls", "partly"),
        ((1, 2, 3), "falls", "differs"),
        ((1, 2, 3), "rises", "agrees"),
        ((1.0, 5, 1.1), "rises", "unclear"),
        ((1, 2), None, "rises"),
        ((2, 1), None, "falls"),
        ((2,), "falls", "single"),
    ],
)
def test_verdict(means: tuple[float, ...], wanted: str | None, verdict: str) -> None:
    assert judge(points(*means), wanted) == verdict


def test_findings_are_computed(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    (listed,) = findings(runs, study.table1(runs)).values()
    by_label = {finding.quantity.label: finding for finding in listed}
    assert by_label["loss gap"].verdict == "agrees"
    assert by_label["test accuracy"].verdict == "agrees"
    assert by_label["train loss"].verdict == "unclear"  # the same everywhere
    assert by_label["std of singular values, summed over layers"].points[0].mean == pytest.approx(3.9)
    assert by_label["std of singular values, summed over layers"].points[0].std == pytest.approx(0.3)
    assert "loss variation at eps 16, mean" in by_label
    assert len(findings(runs)["digits, resnet8"]) == len(listed) - 1


def test_findings_are_of_each_data_set_s_own_radii(tmp_path: Path) -> None:
    runs = make_runs(tmp_path) + make_runs(tmp_path, dataset="c10")
    rows = study.table1(runs)
    of_c10 = rows["dataset"] == "c10"
    rows["loss_variation_mean_eps1"] = rows["loss_variation_mean_eps4"].where(of_c10)
    rows.loc[of_c10, ["loss_variation_mean_eps4", "loss_variation_mean_eps16"]] = None
    listed = findings(runs, rows)
    for name, label in (("digits, resnet8", "eps 16"), ("c10, resnet8", "eps 1")):
        (found,) = [one for one in listed[name] if one.quantity.label == f"loss variation at {label}, mean"]
        assert len(found.points) == 4


def test_one_seed_is_given_no_verdict() -> None:
    assert judge(points(3.0, 2.0, 1.0, std=float("nan")), "falls") == "one seed"


def test_settings_in_common_are_common(report: Path) -> None:
    page = text(report)
    assert "train_attack.steps" in page
    assert not re.search(r"train_attack\s*<", page)  # the attack that standard training has not


def test_table_blocks_follow_settings(tmp_path: Path) -> None:
    runs = make_runs(tmp_path) + make_runs(tmp_path, [0, 8], [0], dataset="c10")
    digits, c10 = blocks(study.summarise(study.table3(runs)).astype({"spectral_norm": "float64"}))
    assert (digits["name"], digits["strengths"]) == ("digits, resnet8", [0, 8, 16, 32])
    assert (c10["name"], c10["strengths"]) == ("c10, resnet8", [0, 8])
    assert [row["quantity"].label for row in digits["rows"]][:3] == ["train accuracy", "test accuracy", "error gap"]
    assert c10["rows"][0]["cells"][0].std == ""


def test_cells_and_durations() -> None:
    assert cell(describe("loss_gap"), -0.01234, 0.5).mean == "\N{MINUS SIGN}0.0123"
    assert cell(describe("pgd_acc"), float("nan"), float("nan")).mean == "\N{EN DASH}"
    assert [duration(seconds) for seconds in (None, 41.4, 185, 7800)] == [
        "\N{EN DASH}",
        "41 s",
        "3 min 05 s",
        "2 h 10 min",
    ]


# Provenance


@pytest.mark.parametrize(
    ("found", "said"),
    [(None, "not recorded"), ("0123", "older code"), (job.code_hash(), "today's code")],
    ids=["none", "old", "new"],
)
def test_code_of_the_training(found: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (run,) = make_runs(tmp_path, [8], [0])
    path = Path(run["folder"]) / "history.parquet"
    meta = META | ({"code_hash": found, "torch": "2.14.0", "device": "cpu"} if found else {})
    table.write(path, "history", table.read(path).to_pydict(), meta)
    (account,) = provenance.account([run])
    assert account.code == said
    assert account.torch == ("2.14.0" if found else "not recorded")
    assert (account.epochs, account.epochs_s, account.train_s) == (2, 3.5, None)


# Captions


def test_captions_are_prose_with_and_without_variables() -> None:
    captions = sorted(TEMPLATE.parent.glob("*.rst"))
    assert {f"{name}.rst" for name in (*FIGURES, *study.TABLE_NEEDS)} <= {path.name for path in captions}
    for path in captions:
        for variables in ({}, {"n_seeds": 1}, {"n_seeds": 3, "compare": [8, 32], "attack": "PGD"}):
            lines = caption(path, variables)
            assert lines
            assert not any("{" in line for line in lines)
            docutils.core.publish_string("\n\n".join(lines), settings_overrides={"halt_level": Reporter.WARNING_LEVEL})


# Browser


def assert_works_offline(page: Page, path: Path, *, width: int, figures: int) -> None:
    """Open a report from disk: every figure shows, nothing is wider than the screen or loaded from outside."""
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == figures
    assert np.all(np.array(widths) > 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert path.as_uri() in requests
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert complaints == []


@pytest.mark.parametrize("width", [375, 1280])
def test_page_works_offline(page: Page, report: Path, width: int) -> None:
    assert_works_offline(page, report, width=width, figures=len(FIGURES))
    assert page.title() == HOSTILE
