"""Figures show the values of the tables, with correct means and error bars, and bit-identical when drawn again."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers.figure_tables import META, STRENGTHS, make_run, make_runs, of_paper
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from robreg.figures import style
from robreg.figures.paper_figures import compose, draw
from robreg.runs.catalogue import FIGURES, select_runs
from robreg.runs.groups import group_by_setting
from robreg.tables import parquet
from robreg.tables.schemas import SCHEMAS
from robreg.tables.study_tables import gather

NAMES = [
    name for name in FIGURES if name not in ("fig2", "fig7", "fig10", "fig11")
]  # 7, 10, 11 are 3, 4, 5 for other runs
OF_EVERY_ARCHITECTURE = ("fig1", "fig3", "fig4", "fig5", "fig7", "fig8", "fig12", "spread", "examples")


def axes_with(figure: Figure, label: str) -> list[Axes]:
    return [ax for ax in figure.axes if label in (ax.get_ylabel(), ax.get_xlabel())]


def titled(figure: Figure, title: str) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_title() == title]


def names(figure: Figure) -> set[str]:
    """Return all texts that can name a setting: titles of panels, headings and legends."""
    legends = [text.get_text() for one in figure.legends for text in (one.get_title(), *one.get_texts())]
    titles = [ax.get_title().removesuffix(", no bound") for ax in figure.axes]
    rows = [ax.get_ylabel().replace("\n", ", ") for ax in figure.axes]
    return {*titles, *(part.get_suptitle() for part in figure.subfigs), *legends, *rows}


def pick(name: str, runs: Sequence[dict[str, Any]]) -> list[Any]:
    return select_runs(name, runs)


def series(ax: Axes) -> list[Any]:
    """Return the lines that show data, without the caps of error bars and the line at 0."""
    return [
        line
        for line in ax.lines
        if len(line.get_xdata()) > 1 and line.get_linestyle() != "None" and line.get_xdata()[0] != line.get_xdata()[-1]
    ]


def bars(ax: Axes) -> list[np.ndarray]:
    """Return half the length of every error bar, per collection."""
    found = [collection for collection in ax.collections if isinstance(collection, LineCollection)]
    return [np.array([np.ptp(segment[:, 1]) / 2 for segment in one.get_segments()]) for one in found]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return of_paper(tmp_path_factory.mktemp("paper"))


def test_gaps_are_means_and_stds_over_seeds(runs: list[dict[str, Any]]) -> None:
    (ax,) = axes_with(compose("fig3", runs), "loss gap (nats)")
    (line,) = series(ax)
    np.testing.assert_array_equal(line.get_xdata(), STRENGTHS)
    np.testing.assert_allclose(line.get_ydata(), [0.11 - ar / 500 for ar in STRENGTHS])
    np.testing.assert_allclose(bars(ax)[0], [0.01] * 4)  # the std of 0, 0.01, 0.02 with ddof 1


def test_error_is_100_minus_accuracy(runs: list[dict[str, Any]]) -> None:
    (ax,) = axes_with(compose("fig3", runs), "error (%)")
    train, test = series(ax)
    np.testing.assert_allclose(train.get_ydata(), [1] * 4)
    np.testing.assert_allclose(test.get_ydata(), [9 + ar / 10 for ar in STRENGTHS])


def test_spectra_show_every_strength(runs: list[dict[str, Any]]) -> None:
    for name in ("fig1", "fig5"):
        (ax,) = axes_with(compose(name, runs), "std of singular values")
        for line, ar in zip(series(ax), STRENGTHS, strict=True):
            np.testing.assert_allclose(line.get_ydata(), [1.1 - ar / 100 + layer / 5 for layer in range(3)])


def test_the_legend_names_what_is_drawn_and_nothing_else(tmp_path: Path) -> None:
    shown = make_runs(tmp_path) + make_runs(tmp_path, [24], [0], space="normalised")
    for name in ("fig1", "fig4", "fig5", "spread"):
        legend = compose(name, shown).legends[0]
        named = [text.get_text() for text in legend.get_texts() if text.get_text().startswith("AR")]
        assert named == ["AR 0", "AR 8", "AR 16", "AR 32", "AR 24, normalised space"]


def test_margins_have_one_density_per_strength(runs: list[dict[str, Any]]) -> None:
    figure = compose("fig4", runs)
    assert len(figure.axes) == 2
    for ax in figure.axes:
        curves = series(ax)
        assert len(curves) == len(STRENGTHS)
        for curve in curves:
            assert 0.9 < np.trapezoid(curve.get_ydata(), curve.get_xdata()) <= 1.01
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_histograms_are_in_percent_and_small_bins_are_readable(runs: list[dict[str, Any]]) -> None:
    for label, column in (("estimated probability of the label", "prob"), ("loss (nats); last bin: all above", "loss")):
        (ax,) = axes_with(compose("fig5", runs), label)
        stairs = [patch.get_data() for patch in ax.patches if hasattr(patch, "get_data")]
        assert len(stairs) == len(STRENGTHS)
        frame = gather(runs, "margins", ["split", column]).query("split == 'test' and ar == 0")
        edges = [*stairs[0].edges[:-1], np.inf] if column == "loss" else stairs[0].edges
        np.testing.assert_allclose(stairs[0].values, 100 * np.histogram(frame[column], edges)[0] / len(frame))
        assert stairs[0].values.sum() == pytest.approx(100)
        assert ax.get_yscale() == "log"
        every = np.concatenate([one.values for one in stairs])
        assert ax.get_ylim()[0] < every[every > 0].min()
        assert ax.get_ylim()[1] > 100
        assert not ax.child_axes


def test_histograms_are_at_most_two_in_a_row(tmp_path: Path) -> None:
    runs = [run for name in ("a", "b", "c") for run in make_runs(tmp_path, [8, 32], [0], dataset=name)]
    figure = compose("fig5", runs)
    with mpl.rc_context(style.THEME):
        figure.draw_without_rendering()
    tops = [round(ax.get_position().y1, 3) for ax in of_section(figure, "test examples in a bin (%)")]
    assert tops.count(max(tops)) == 2


def test_losses_above_the_last_bin_are_not_lost(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, [8], [0])
    path = Path(run["folder"]) / "margins.parquet"
    columns = parquet.read(path).to_pydict()
    parquet.write(path, "margins", columns | {"loss": [50.0] * len(columns["loss"])}, META)
    (ax,) = axes_with(compose("fig5", [run]), "loss (nats); last bin: all above")
    (stairs,) = (patch.get_data() for patch in ax.patches if hasattr(patch, "get_data"))
    assert stairs.values.tolist() == [0] * (len(stairs.values) - 1) + [100]


def test_loss_variation_shows_mean_and_std_over_examples_with_bars_over_seeds(runs: list[dict[str, Any]]) -> None:
    mean, std = compose("fig8", runs).axes
    frame = gather(runs, "lossvar", ["eps", "prob_variation"]).query("eps == 4")
    each = frame.groupby(["ar", "seed"])["prob_variation"]
    for ax, values in ((mean, each.mean()), (std, each.std(ddof=0))):
        over = values.groupby("ar")
        np.testing.assert_allclose(series(ax)[0].get_ydata().astype(float), over.mean(), rtol=1e-6)
        np.testing.assert_allclose(bars(ax)[0], over.std(ddof=1), rtol=1e-6)
        assert ax.get_yscale() == "log"  # small radii are as readable as large ones


def test_our_curves_are_drawn_at_their_stated_strengths_beside_the_paper_s_points(tmp_path: Path) -> None:
    c10 = {"dataset": "c10", "paper": "c10", "arch": "resnet56", "default_arch": "resnet56", "space": "normalised"}
    runs = make_runs(tmp_path, [4, 16], [0, 1], **c10) + make_runs(tmp_path, [0], [0], **c10 | {"arch": "fixup56"})
    runs += make_runs(tmp_path, [16], [0], **c10 | {"train_attack": "fgsm"})
    figure = compose("conventions", pick("conventions", runs))
    panels_ = {ax.get_ylabel(): ax for ax in figure.axes}
    assert list(panels_) == ["training accuracy (%)", "test accuracy (%)", "training loss (nats)", "test loss (nats)"]
    ax = panels_["test accuracy (%)"]
    (curve,) = series(ax)
    np.testing.assert_allclose(curve.get_xdata(), [4, 16])  # as stated, not in pixels
    np.testing.assert_allclose(curve.get_ydata(), [90 - 0.4 + 0.5, 90 - 1.6 + 0.5])
    points = {line.get_marker(): line.get_xydata().tolist() for line in ax.lines if line.get_marker() in ("x", "+")}
    assert points == {
        "x": [[4, 88.86], [8, 87.51], [16, 84.89]],
        "+": [[4, 89.32], [8, 86.67], [16, 82.83]],
    }
    assert {"c10, resnet56, normalised space", "c10, fixup56, normalised space"} <= names(figure)
    assert pick("conventions", make_runs(tmp_path)) == []  # of no data set of the paper


def test_adversarial_accuracy_is_drawn_with_both_definitions(runs: list[dict[str, Any]]) -> None:
    left, right = compose("fig12", runs).axes
    np.testing.assert_allclose(series(left)[0].get_ydata(), [31 + ar for ar in STRENGTHS])
    np.testing.assert_allclose(series(right)[0].get_ydata(), [29 + ar for ar in STRENGTHS])
    assert left.get_ylim() == right.get_ylim() == (0, 100)


def test_the_published_accuracy_is_drawn_with_the_unconditional_one_of_its_data_set(
    paper: list[dict[str, Any]],
) -> None:
    axes = compose("fig12", pick("fig12", paper)).axes
    stars = [[line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "*"] for ax in axes]
    assert [len(each) for each in stars] == [0, 1]
    assert [8, 50] in stars[1][-1]
    figure = compose("fig12", pick("fig12", [run for run in paper if run["paper"] is None]))
    assert not [line for ax in figure.axes for line in ax.lines if line.get_marker() == "*"]
    assert "Madry" not in str([text.get_text() for text in figure.legends[0].get_texts()])


def test_strengths_are_drawn_at_their_radius_in_pixels_in_both_spaces(tmp_path: Path) -> None:
    published = [{"label": "Madry et al. 2018", "ar": 8, "robust_acc": 50}]
    normalised = make_runs(tmp_path, [8, 32], space="normalised", published=published)
    figure = compose("fig12", make_runs(tmp_path, published=published) + normalised)
    for ax in figure.axes[:2]:
        (line,) = (line for line in series(ax) if line.get_linestyle() != ":" and line.get_marker() == "o")
        np.testing.assert_array_equal(line.get_xdata(), STRENGTHS)
    for ax in figure.axes[2:]:  # curves of the two spaces are not joined
        (line,) = series(ax)
        np.testing.assert_allclose(line.get_xdata(), [2, 8])  # the channels' stds are 0.25, 0.2 and 0.3
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2\n(AR 8)", "8\n(AR 32)"]
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert ("pixel space" in labels[0], "normalised space" in labels[2]) == (True, True)
    for name, label in (
        ("fig1", "accuracy (%)"),
        ("fig3", "loss (nats)"),
        ("fig8", "mean of the loss variation\n(label's probability)"),
    ):
        figure = compose(name, make_runs(tmp_path) + normalised)
        *_, ax = titled(figure, "digits, resnet8, normalised space")
        np.testing.assert_allclose(ax.get_xticks(), [2, 8])
        assert ax.get_xlabel() == "AR: radius in pixels (1/255)"
        assert 7 < series(ax)[0].get_xdata()[-1] < 9
        (ax,) = axes_with(figure, label)
        np.testing.assert_allclose(ax.get_xticks(), STRENGTHS)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "radius 4/255 (\N{MULTIPLICATION SIGN} std in normalised space)"
    only_normalised = compose("fig12", normalised)
    assert len(only_normalised.axes) == 2
    assert not [line for ax in only_normalised.axes for line in ax.lines if line.get_marker() == "*"]


def test_data_sets_in_normalised_space_have_their_own_radii(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, [8, 32], [0], space="normalised")
    other = make_runs(tmp_path, [8, 32], [0], space="normalised", dataset="c10")
    for run in other:
        path = Path(run["folder"]) / "masking.parquet"
        parquet.write_frame(path, parquet.read(path), META | {"std": [0.5]})
    left, _ = compose("fig12", runs + other).axes
    assert [line.get_xdata().tolist() for line in series(left)] == [pytest.approx([2, 8]), pytest.approx([4, 16])]
    assert not [tick for tick in left.get_xticklabels() if "AR" in tick.get_text()]
    parquet.write_frame(path, parquet.read(path), META)
    with pytest.raises(ValueError, match=r"masking\.parquet does not state .* delete it and make it again"):
        compose("fig12", runs + other)


def test_a_null_accuracy_leaves_a_point_out(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, seeds=[0])
    path = Path(runs[1]["folder"]) / "metrics.parquet"
    row = {key: [None if key == "pgd_acc" else value] for key, (value,) in parquet.read(path).to_pydict().items()}
    parquet.write(path, "metrics", row, META)
    left, _ = compose("fig12", runs).axes
    np.testing.assert_array_equal(series(left)[0].get_xdata(), [0, 16, 32])
    more = make_runs(tmp_path, seeds=[1, 2])  # the mean of the two seeds that have a value would not be of three
    left, _ = compose("fig12", runs + more).axes
    np.testing.assert_array_equal(series(left)[0].get_xdata(), [0, 16, 32])


def test_losses_and_errors_have_panels_of_their_own(runs: list[dict[str, Any]]) -> None:
    for name in ("fig3", "fig6", "fig7"):
        figure = compose(name, runs)
        for label, count, color in (
            ("loss gap (nats)", 1, style.LOSS),
            ("error gap (% points)", 1, style.ERROR),
            ("loss (nats)", 2, style.LOSS),
            ("error (%)", 2, style.ERROR),
        ):
            (ax,) = axes_with(figure, label)
            assert [to_hex(line.get_color()) for line in series(ax)] == [color] * count
        assert len(figure.axes) == 4


def test_bounds_decrease_from_panel_to_panel_on_one_scale(paper: list[dict[str, Any]]) -> None:
    figure = compose("fig6", pick("fig6", paper))
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == 4 * [
        "c10, resnet8, no bound",
        *(f"c10, resnet8, bound {bound} on every layer" for bound in (5, 3, 1)),
    ]
    for label in ("loss gap (nats)", "loss (nats)"):
        assert len({ax.get_ylim() for ax in figure.axes if label == ax.get_ylabel()}) == 1


def test_fgsm_figure_shows_the_loss_gap_and_both_errors(paper: list[dict[str, Any]]) -> None:
    figure = compose("fig9", pick("fig9", paper))
    for name in ("c10, resnet8, FGSM", "c100, resnet8, FGSM"):
        gap, error = titled(figure, name)
        (line,) = series(gap)
        np.testing.assert_allclose(line.get_ydata(), [0.1 - ar / 500 for ar in (8, 16, 32)])
        assert [len(one.get_xdata()) for one in series(error)] == [3, 3]


def test_spread_shows_mean_and_std_per_layer_and_the_margin_separately(runs: list[dict[str, Any]]) -> None:
    random, attacked, margin = compose("spread", runs).axes
    for ax, more in ((random, 0), (attacked, 1)):
        lines = series(ax)
        assert len(lines) == 2 * len(STRENGTHS)
        for ar, line, std in zip(STRENGTHS, lines[::2], lines[1::2], strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])  # without 0, the margin
            np.testing.assert_allclose(line.get_ydata(), [2.1 + more, 3.1 + more, 4.1 + more])
            np.testing.assert_allclose(std.get_ydata(), 0.5 - ar / 100)
    assert random.get_ylim() == attacked.get_ylim()
    assert [ax.get_yscale() for ax in (random, attacked, margin)] == ["log"] * 3  # std is far smaller than the mean
    points = [line.get_ydata()[0] for line in margin.lines if line.get_marker() in "os"]
    np.testing.assert_allclose(points, [one for ar in STRENGTHS for one in (1.1, 0.5 - ar / 100, 2.1, 0.5 - ar / 100)])
    np.testing.assert_allclose(bars(margin)[0], [0.1])  # std over seeds


def test_a_setting_of_one_strength_is_a_point_in_the_panel_of_the_most_similar_one(tmp_path: Path) -> None:
    c10 = {"dataset": "c10"}
    runs = (
        make_runs(tmp_path) + make_runs(tmp_path, [16], [0], space="normalised") + make_runs(tmp_path, [16], [0], **c10)
    )
    for name, label, panels_ in (("fig1", "accuracy (%)", 6), ("fig3", "error (%)", 8), ("fig9", "error (%)", 4)):
        figure = compose(name, runs)
        assert len(figure.axes) == panels_  # of digits and c10, which has no panel to join
        (ax,) = axes_with(figure, label)
        markers = [line for line in ax.lines if line.get_marker() == "P"]
        assert [line.get_xdata()[0] for line in markers] == [pytest.approx(4)] * 2  # 16 times the mean std, 0.25
        assert {"digits, resnet8", "c10, resnet8", "AR 16, normalised space"} <= names(figure)
    (ax, _) = [ax for ax in compose("fig1", runs).axes if ax.get_xlabel().startswith("layer")]
    np.testing.assert_allclose(series(ax)[-1].get_ydata(), [0.84, 1.04, 1.24])
    assert len(series(compose("spread", runs).axes[0])) == 2 * 5
    bounded = make_runs(tmp_path) + make_runs(tmp_path, [16], [0], spectral_norm=1.0)
    figure = compose("fig6", pick("fig6", bounded))
    assert {"digits, resnet8, no bound", "AR 16, bound 1 on every layer"} <= names(figure)
    assert len(figure.axes) == 4


def test_a_space_of_one_strength_joins_the_first_row_of_adversarial_accuracies(tmp_path: Path) -> None:
    figure = compose("fig12", make_runs(tmp_path) + make_runs(tmp_path, [16], [0], space="normalised"))
    left, right = figure.axes
    assert {ax.get_ylabel() for ax in (left, right)} == {"adversarial accuracy (%)"}
    assert list(left.get_xticks()) == list(STRENGTHS)
    assert "digits, resnet8, normalised space" in names(figure)


def of_two_architectures(folder: Path) -> list[dict[str, Any]]:
    """Write runs of a data set's default architecture and of a user's own one, whose loss gaps are twice as large."""
    runs = make_runs(folder, seeds=[0, 1]) + make_runs(folder, seeds=[0, 1], arch="mynet")
    for run in runs[8:]:
        make_run(Path(run["folder"]), run["ar"], run["seed"], factor=2)
    return runs


@pytest.mark.parametrize("name", OF_EVERY_ARCHITECTURE)
def test_every_architecture_has_a_panel_that_names_it(name: str, tmp_path: Path) -> None:
    runs = of_two_architectures(tmp_path)
    assert {"digits, resnet8", "digits, mynet"} <= names(compose(name, pick(name, runs)))
    only = [run for run in runs if run["arch"] == "mynet"]
    if name != "fig7":
        found = names(compose(name, pick(name, only)))
        assert "digits, mynet" in found
        assert "digits, resnet8" not in found
    shown = select_runs(name, runs, ["digits/mynet"])
    assert {run["arch"] for run in shown} == {"mynet"}
    assert len(shown) == (4 if name == "examples" else 8)


def test_figure_7_compares_the_architectures_of_a_data_set_on_one_scale(tmp_path: Path) -> None:
    runs = of_two_architectures(tmp_path) + make_runs(tmp_path, dataset="tin", arch="wrn50", default_arch="wrn50")
    shown = pick("fig7", runs)
    assert {(run["dataset"], run["arch"]) for run in shown} == {("digits", "resnet8"), ("digits", "mynet")}
    assert pick("fig7", [run for run in runs if run["arch"] != "resnet8"]) == []
    shown += make_runs(tmp_path, seeds=[0], dataset="c10")  # another data set keeps its own scale
    for label in ("loss gap (nats)", "error gap (% points)"):
        first, second, other = [ax.get_ylim() for ax in of_section(compose("fig7", shown), label)]
        assert first == second != other
    first, second, _ = [ax.get_ylim() for ax in of_section(compose("fig3", shown), "loss gap (nats)")]
    assert first != second


def of_section(figure: Figure, label: str) -> list[Axes]:
    """Return the panels of the section with this label; outer panels alone have it."""
    return axes_with(figure, label)[0].figure.axes


@pytest.mark.parametrize(("letters", "across"), [(9, 3), (25, 2), (50, 1)])
def test_long_names_get_wider_panels(letters: int, across: int, tmp_path: Path) -> None:
    runs = [run for end in "abc" for run in make_runs(tmp_path, [8, 32], [0], arch="n" * (letters - 1) + end)]
    figure = compose("fig8", runs)
    section = of_section(figure, "mean of the loss variation\n(label's probability)")
    tops = [round(ax.get_position().y1, 3) for ax in section]
    assert tops.count(max(tops)) == across
    with mpl.rc_context(style.THEME):
        figure.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in figure.axes]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_fig2_is_drawn_by_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Figure()
    monkeypatch.setattr("robreg.figures.figure2.fig2", lambda: drawn)
    assert compose("fig2", []) is drawn


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_settings_are_named_and_everything_is_inside_the_figure(
    name: str, paper: list[dict[str, Any]]
) -> None:
    runs = pick(name, paper)
    figure = compose(name, runs)
    assert figure.get_figwidth() == style.WIDTH
    points = {"c10, resnet8, normalised space": "AR 16, normalised space"}  # of one strength
    assert {
        name_ if name in ("fig12", "conventions") else points.get(name_, name_) for name_ in group_by_setting(runs)
    } <= names(figure)
    with mpl.rc_context(style.THEME):
        figure.draw_without_rendering()
        parts = [*figure.axes, *figure.legends, *(legend for part in figure.subfigs for legend in part.legends)]
        boxes = [part.get_tightbbox() for part in parts]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    texts = [text for ax in figure.axes for text in (ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), ax.title)]
    assert min(text.get_fontsize() for text in texts) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_writing_a_figure_twice_gives_identical_files(name: str, runs: list[dict[str, Any]], tmp_path: Path) -> None:
    for stem in ("a", "b"):
        draw(name, runs, svg=tmp_path / f"{stem}.svg", png=tmp_path / f"{stem}.png")
    for suffix in ("svg", "png"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert "AR" in text
    assert "<text" in text
    assert "dc:date" not in text
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_one_seed_without_standard_training_and_two_data_sets_are_drawn(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, [8, 32], [0]) + make_runs(tmp_path, [0, 8, 32], [0], dataset="c10")
    for name in NAMES:
        with np.errstate(all="raise"):
            figure = compose(name, runs)
        assert {"digits, resnet8", "c10, resnet8"} <= names(figure)


def test_settings_with_different_numbers_of_seeds_are_drawn_together(tmp_path: Path) -> None:
    """As in the study of the paper: one setting has three seeds, another one, and standard training belongs to both."""
    runs = make_runs(tmp_path, [0, 8, 32]) + make_runs(tmp_path, [8, 32], [0], train_attack="fgsm")
    for name in NAMES:
        with np.errstate(all="raise"):
            figure = compose(name, runs)
        assert {"digits, resnet8", "digits, resnet8, FGSM"} <= names(figure)
    figure = compose("fig9", runs)
    gap, _ = titled(figure, "digits, resnet8, FGSM")
    (line,) = series(gap)
    np.testing.assert_allclose(line.get_ydata(), [0.11, 0.1 - 8 / 500, 0.1 - 32 / 500])  # 0.11: mean of three seeds
    (drawn,) = [one for one in gap.collections if isinstance(one, LineCollection)]
    (bar,) = [segment for segment in drawn.get_segments() if len(segment)]  # a single seed has no bar
    np.testing.assert_allclose(bar, [[0, 0.1], [0, 0.12]])


def test_data_sets_with_different_strengths_and_radii_share_their_axes(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, seeds=[0]) + make_runs(tmp_path, [0, 4, 8, 32], [0], dataset="c10")
    for run in runs[len(STRENGTHS) :]:
        path = Path(run["folder"]) / "lossvar.parquet"
        columns = parquet.read(path).to_pydict()
        parquet.write(path, "lossvar", columns | {"eps": [eps / 4 for eps in columns["eps"]]}, META)
    for name in ("fig3", "fig8"):
        first, second, *_ = compose(name, runs).axes
        assert first.get_xlim() == second.get_xlim()
        assert list(first.get_xticks()) == [0, 4, 8, 16, 32]
    assert len(series(first)) == len(series(second)) == 2  # radii 4 and 16, and 1 and 4


def test_a_setting_with_only_standard_training_is_kept(tmp_path: Path) -> None:
    runs = make_runs(tmp_path) + make_runs(tmp_path, [0], dataset="c10")
    groups = group_by_setting(runs)
    assert {name: len(members) for name, members in groups.items()} == {"digits, resnet8": 12, "c10, resnet8": 3}


def test_looks_differ_in_more_than_colour() -> None:
    looks = style.by_strength([0, 4, 8, 16])
    assert list(looks) == [0, 4, 8, 16]
    assert len({(str(look.dashes), look.marker) for look in looks.values()}) == 4
    grey = [
        np.dot(tuple(int(to_hex(look.color)[i : i + 2], 16) for i in (1, 3, 5)), (0.3, 0.59, 0.11))
        for look in looks.values()
    ]
    assert grey[1] > grey[2] > grey[3]


def test_standard_training_belongs_to_every_attack(runs: list[dict[str, Any]]) -> None:
    fgsm = [{**run, "train_attack": "fgsm"} for run in runs if run["ar"]]
    groups = group_by_setting([*runs, *fgsm])
    assert {name: len(members) for name, members in groups.items()} == {
        "digits, resnet8": 12,
        "digits, resnet8, FGSM": 12,
    }
    assert list(pd.DataFrame(groups["digits, resnet8, FGSM"])["train_attack"].unique()) == ["pgd", "fgsm"]


def test_files_do_not_depend_on_the_last_bits_of_a_layout(tmp_path):
    for name, left in (("one", 0.1), ("other", 0.1 + 1e-14)):
        figure = Figure()
        figure.add_axes((left, 0.1, 0.8, 0.8)).plot([0, 1])
        style.save(figure, tmp_path / f"{name}.svg", tmp_path / f"{name}.png")
    for end in ("svg", "png"):
        assert (tmp_path / f"one.{end}").read_bytes() == (tmp_path / f"other.{end}").read_bytes()
    drawn = (tmp_path / "one.svg").read_text()
    assert 'clip-path="url(#clip0)"' in drawn
    assert '<clipPath id="clip0">' in drawn


@pytest.mark.parametrize("label", ["$x^2$", r"$\frac$ 5 %", "</text><script>alert(1)</script>", "_own & 'other'"])
def test_a_user_s_label_is_drawn_literally(label, tmp_path):
    (run,) = make_runs(tmp_path, [8], [0], published=[{"label": label, "ar": 8, "robust_acc": 50}])
    draw("fig12", [run], svg=tmp_path / "fig.svg", png=tmp_path / "fig.png")
    drawn = ElementTree.parse(tmp_path / "fig.svg")
    assert label in [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert not list(drawn.iter("{http://www.w3.org/2000/svg}script"))


def test_attacked_images_are_drawn_with_predictions_margins_and_changes(runs: list[dict[str, Any]]) -> None:
    figure = compose("examples", pick("examples", runs))
    headings = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert [text for text in headings if text != "no attack"] == [
        "all attacked with 32/255",
        "each attacked with its AR strength",
    ]
    grid = np.full((6, 9), None)
    for ax in figure.axes:
        place = ax.get_subplotspec()
        grid[place.rowspan[0], place.colspan[0]] = ax
    left, right = grid[1:, :4], grid[1:, 5:]
    assert [line[0].get_ylabel() for line in left[1:]] == [f"AR {ar}" for ar in STRENGTHS]
    assert [ax.get_xlabel() for ax in left[0, ::2]] == ["class 0", "class 2"]
    image = np.arange(6).reshape(2, 3) / 5
    sign = (-1.0) ** np.arange(6).reshape(2, 3)
    for ax in left[0, ::2]:
        np.testing.assert_allclose(ax.images[0].get_array(), image)
    for block, radii in ((left, [32] * 4), (right, STRENGTHS)):
        for line, ar, eps in zip(block[1:], STRENGTHS, radii, strict=True):
            if not eps:
                assert [ax.get_xlabel() for ax in line] == [""] * 4
                assert [text.get_text() for text in line[0].texts] == ["no attack"]
                continue
            after = (ar - eps) / 4 + 0.5
            seen = [7 if after < 0 else 0] * 2
            assert [ax.get_xlabel() for ax in line[::2]] == [
                f"{label} → {one}\n9.0 → {after:.1f}".replace("-", "\N{MINUS SIGN}")
                for label, one in zip((0, 2), seen, strict=True)
            ]
            colours = [to_hex(ax.xaxis.label.get_color()) for ax in line[::2]]
            assert colours == [
                style.ERROR if one != label else "#000000" for label, one in zip((0, 2), seen, strict=True)
            ]
            assert [ax.get_xlabel() for ax in line[1::2]] == [f"±{eps / 2:.3g}/255"] * 2
            np.testing.assert_allclose(line[0].images[0].get_array(), image + sign * eps / 510, atol=1e-6)
            np.testing.assert_allclose(line[1].images[0].get_array(), 0.5 + sign / 2, atol=1e-5)


def test_attacked_images_are_those_of_the_smallest_seed(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = [run for run in runs if run["seed"] == 0]
    assert pick("examples", runs[::-1]) == alone[::-1]
    later = [run for run in runs if run["seed"] and (run["seed"], run["ar"]) != (1, 8)]
    assert {(run["ar"], run["seed"]) for run in pick("examples", later)} == {(0, 1), (8, 2), (16, 1), (32, 1)}
    margins = {ax.get_xlabel().partition("\n")[2][:4] for ax in compose("examples", pick("examples", later)).axes}
    assert margins == {"", "10.0", "11.0"}


def with_examples(run: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Write other values into all rows of a run's attacked images."""
    path = Path(run["folder"]) / "examples.parquet"
    rows = [row | changes for row in parquet.read(path).to_pylist()]
    parquet.write_frame(path, pa.Table.from_pylist(rows, SCHEMAS["examples"]), META)
    return run


@pytest.mark.parametrize(
    ("changes", "heading"),
    [
        ([{}, {}], "all attacked with 32/255"),
        ([{}, {"eps": 8.0, "radius": "evaluation", "index": None}], "all attacked with 32/255 or 8/255"),
        ([{"space": "normalised"}, {"space": "normalised"}], "all attacked with 32/255 in normalised space"),
        ([{}, {"space": "normalised"}], "all attacked with 32/255,\neach in its own space"),
    ],
)
def test_the_radius_and_its_space_stand_above_the_images(
    changes: list[dict[str, Any]], heading: str, tmp_path: Path
) -> None:
    runs = make_runs(tmp_path, [0, 8], [0])
    for run, change in zip(runs, changes, strict=True):
        rows = parquet.read(Path(run["folder"]) / "examples.parquet").to_pylist()
        kept = {key: value for key, value in change.items() if value is not None and key != "radius"}
        rows = [row | (kept if row["radius"] == "evaluation" or "eps" not in change else {}) for row in rows]
        parquet.write_frame(
            Path(run["folder"]) / "examples.parquet", pa.Table.from_pylist(rows, SCHEMAS["examples"]), META
        )
    headings = [text.get_text() for ax in compose("examples", runs).axes for text in ax.texts]
    assert headings[0] == heading


def test_without_an_adversarial_training_there_is_one_half(tmp_path: Path) -> None:
    figure = compose("examples", make_runs(tmp_path, [0], [0]))
    headings = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert headings == ["all attacked with 32/255"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_three_channels_are_in_colour_and_others_grey(channels: int, tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, [0], [0])
    image, moved = np.arange(channels * 6) * 10, np.full(channels * 6, 2.0)
    attacked = (image + moved) / 255
    with_examples(run, channels=channels, image=image.tolist(), adversarial=attacked.tolist())
    axes = [ax for ax in compose("examples", [run]).axes if ax.images]
    expected = (image / 255).reshape(channels, 2, 3)
    expected = expected.transpose(1, 2, 0) if channels == 3 else expected.mean(0)
    np.testing.assert_allclose(axes[0].images[0].get_array(), expected)
    assert {ax.get_xlabel() for ax in axes} >= {"±2/255"}


def test_an_image_that_did_not_change_is_grey(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, [0], [0])
    image = [0, 51, 102, 153, 204, 255]
    with_examples(run, image=image, adversarial=[pixel / 255 for pixel in image])
    (change, *_) = [ax for ax in compose("examples", [run]).axes if ax.get_xlabel() == "no change"]
    np.testing.assert_allclose(change.images[0].get_array(), 0.5)


def test_a_guest_in_pixel_space_is_told_apart_from_its_host(tmp_path: Path) -> None:
    host = make_runs(tmp_path, [8, 16], [0], space="normalised")
    guest = make_runs(tmp_path, [16], [0])
    for name in ("fig4", "examples"):
        assert "AR 16, pixel space" in names(compose(name, [*host, *guest]))
    bounded = make_runs(tmp_path, [8, 16], [0], spectral_norm=1.0)
    assert "AR 16, no bound" in names(compose("fig6", [*bounded, *guest]))
