"""The report's first sentences: numbers at every strength, and steps that go the other way."""

import math
from pathlib import Path

import pytest
from helpers import figure_tables, study_files

from robreg.report import finding
from robreg.report.finding import Course
from robreg.report.units import Quantity


def course(means: list[float], stds: list[float] | None = None) -> str:
    strengths = [0, 8, 16, 32][: len(means)]
    return Course(Quantity("", "nats", 2), "the gap", strengths, means, stds or [0.0] * len(means)).sentence()


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([0.4, 0.3, 0.2], "the gap falls (0.40, 0.30 and 0.20 nats)"),
        ([0.2, 0.3], "the gap rises (0.20 and 0.30 nats)"),
        ([0.2, 0.2], "the gap does not change (0.20 and 0.20 nats)"),
        ([0.2, 0.201], "the gap hardly changes (0.20 and 0.20 nats)"),
        ([0.3, 0.5, 0.2], "the gap falls from end to end (0.30, 0.50 and 0.20 nats), but rises from AR 0 to 8"),
        (
            [0.1, 0.4, 0.3, 0.5],
            "the gap rises from end to end (0.10, 0.40, 0.30 and 0.50 nats), but falls from AR 8 to 16",
        ),
        ([0.3, math.nan], "the gap is not known at one end, or at both (0.30 and \N{EN DASH} nats)"),
    ],
)
def test_a_course_names_its_direction_its_numbers_and_where_it_turns(means: list[float], expected: str) -> None:
    assert course(means) == expected


def test_a_turn_smaller_than_the_difference_between_seeds_is_said_to_be() -> None:
    doubtful = course([0.3, 0.5, 0.2], [0.2, 0.2, 0.0])
    assert doubtful.endswith("but rises from AR 0 to 8 (by less than seeds differ)")
    assert "seeds" not in course([0.3, 0.5, 0.2], [0.1, 0.1, 0.0])
    assert "seeds" not in course([0.3, 0.5, 0.2], [math.nan] * 3)  # one seed


def test_the_numbers_are_means_over_seeds_of_the_tables(tmp_path: Path) -> None:
    runs = figure_tables.make_runs(tmp_path)
    found = finding.courses(runs)
    assert found["loss_gap"].means == pytest.approx([0.11 - ar / 500 for ar in figure_tables.STRENGTHS])
    assert found["loss_gap"].stds == pytest.approx([0.01] * 4)
    assert found["sv_spread"].means == pytest.approx([1.3 - ar / 100 for ar in figure_tables.STRENGTHS])
    one, *_ = finding.measure(runs).to_dict("records")
    margins = study_files.parquet.read(Path(runs[0]["folder"]) / "margins.parquet").to_pandas()
    tested = margins.loc[margins["split"] == "test", "margin"].astype("float64")
    assert one["margin_spread"] == pytest.approx(tested.std(ddof=0))


def test_the_answer_names_the_strengths_and_the_seeds(tmp_path: Path) -> None:
    runs = figure_tables.make_runs(tmp_path)
    first, second = finding.answer(finding.main_settings(runs))
    assert first.startswith(
        "As AR grows (0, 8, 16 and 32 in 1/255; means over 3 seeds), the loss gap falls (0.110, 0.094, 0.078 and 0.046 "
        "nats), and the adversarial accuracy rises (31.0, 39.0, 47.0 and 63.0 %)."
    )
    assert second.startswith("The spread of singular values falls (1.300, 1.220, 1.140 and 0.980), and the spread of")
    more = runs + figure_tables.make_runs(tmp_path, seeds=[0], dataset="c10")
    assert finding.answer(finding.main_settings(more))[0].startswith("On digits, resnet8, as AR grows")
    assert [block["name"] for block in finding.glance(finding.main_settings(more))] == [
        "digits, resnet8",
        "c10, resnet8",
    ]
    (alone,) = finding.answer(finding.main_settings(runs[:3]))
    assert alone == "No setting of this study has networks of two strengths, so nothing here shows a change with AR."


def test_an_accuracy_that_one_seed_lacks_is_not_the_mean_of_the_others(tmp_path: Path) -> None:
    runs = figure_tables.make_runs(tmp_path, [0, 8])
    path = Path(runs[0]["folder"]) / "metrics.parquet"
    row = {
        key: [None if key == "pgd_acc" else one] for key, (one,) in study_files.parquet.read(path).to_pydict().items()
    }
    study_files.parquet.write(path, "metrics", row, figure_tables.META)
    assert math.isnan(finding.courses(runs)["pgd_acc"].means[0])


def test_a_figure_says_what_it_shows_here(tmp_path: Path) -> None:
    runs = figure_tables.make_runs(tmp_path)
    (line,) = finding.lines_about("fig3", runs)
    assert line.startswith("Here, with digits, resnet8, as AR grows (0, 8, 16 and 32): the loss gap falls (0.110")
    assert finding.lines_about("fig2", runs) == finding.lines_about("fig3", runs[:3]) == []
