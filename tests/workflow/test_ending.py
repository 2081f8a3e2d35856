"""The last lines of a run: which studies are finished, and what is left out of the terminal."""

import logging
from types import SimpleNamespace

import pytest
import yaml
from helpers.snakemake_copy import ROOT

from robreg.workflow import ending

CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
PAPER_AND_DEMO = ("paper", "demo")


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Make the reports of two studies."""
    monkeypatch.chdir(tmp_path)
    for study in PAPER_AND_DEMO:
        path = tmp_path / f"results/studies/{study}/report.html"
        path.parent.mkdir(parents=True)
        path.touch()


def asked(*targets, **others):
    settings = {"targets": frozenset(targets), "until": frozenset(), "omit_from": frozenset(), **others}
    return SimpleNamespace(globals={"config": CONFIG}, dag_settings=SimpleNamespace(**settings))


def test_a_finished_study_is_named_with_its_report_in_three_lines(finished):
    assert list(ending.describe_finished(asked("demo"))) == [
        "The study demo is finished: 15 networks are trained and measured.",
        "Report: results/studies/demo/report.html (open it in a browser)",
        "Numbers: results/studies/demo/tables, and of each network, results/digits",
    ]


def test_a_study_without_tables_names_none(finished):
    workflow = asked("demo")
    workflow.globals["config"] = {**CONFIG, "studies": {"demo": {**CONFIG["studies"]["demo"], "tables": []}}}
    assert list(ending.describe_finished(workflow))[2] == "Numbers: of each network, results/digits"


@pytest.mark.parametrize("targets", [(), ("all",), ("paper",)])
def test_the_study_of_the_paper_has_several_names(finished, targets):
    first, _, last = ending.describe_finished(asked(*targets))
    assert first == "The study paper is finished: 40 networks are trained and measured."
    assert last.endswith("of each network, results/c10, results/c100, results/tin")


@pytest.mark.parametrize(
    "workflow",
    [
        asked("results/digits/ar8/svstd.parquet"),
        asked("literal"),  # has no report
        asked("demo", until=frozenset(["train"])),
        asked("demo", omit_from=frozenset(["report"])),
    ],
)
def test_nothing_is_said_of_what_is_not_a_finished_study(finished, workflow):
    assert not list(ending.describe_finished(workflow))


class Kept(logging.StreamHandler):
    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, record):
        self.seen.append(record.getMessage())


def test_the_job_of_a_target_is_left_out_of_the_terminal_alone(tmp_path):
    logger = logging.Logger("snakemake", logging.INFO)
    terminal, file = Kept(), logging.FileHandler(tmp_path / "log")
    logger.addHandler(terminal)
    logger.addHandler(file)
    ending.hide_targets(logger, frozenset(["demo"]))

    def say(message, event, **extra):
        logger.info(message, extra={"event": SimpleNamespace(value=event), **extra})

    for number, (rule, output) in enumerate([("report", ["a"]), ("demo", []), ("demo", ["a"])]):
        say(f"job {number}", "job_info", jobid=number, rule_name=rule, output=output)
        say(f"finished {number}", "job_finished", job_id=number)
    say("2 of 2 steps", "progress")
    logger.info("no event")
    assert terminal.seen == ["job 0", "finished 0", "job 2", "finished 2", "2 of 2 steps", "no event"]
    assert (tmp_path / "log").read_text().count("\n") == 8
