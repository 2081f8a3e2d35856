"""Draw the paper's figures from the tables of a study's runs, with one panel per setting and the paper's sections."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robreg.figures import figure2, grid, strength_axis, style
from robreg.figures.grid import Section, Shared
from robreg.figures.panels import (
    KINDS,
    histogram,
    layer_amplification,
    losses_and_errors,
    make_room_for_inset,
    margin_change,
    margins,
    mean_look,
    metric_lines,
    published_point,
    runs_at_strengths,
    spectra_std,
    std_look,
    variation,
)
from robreg.figures.panels import spectra_std as spectra_
from robreg.figures.style import Look
from robreg.paper.reference import read_reference
from robreg.runs.catalogue import Run
from robreg.runs.groups import group_by_setting, list_strengths
from robreg.runs.variant import SPACES, paper_name, split_spaces
from robreg.tables.study_tables import KEYS, failed_masking_checks, gather

PROBABILITY = np.linspace(0, 1, 11)
LOSS_BIN = 0.25  # nats
MIDDLE = {"prob": slice(1, -1), "loss": slice(1, 10)}  # slices of the bin edges: 0.1 to 0.9, and 0.25 to 2.25 nats
_DASHED = (0, (4, 2))
LOSS_GAP = {"loss_gap": Look("loss gap", style.LOSS, "solid", "D")}
ERROR_GAP = {"acc_gap": Look("error gap", style.ERROR, _DASHED, "^")}
LOSS = {
    "train_loss": Look("train loss", style.LOSS, _DASHED, "s", filled=False),
    "test_loss": Look("test loss", style.LOSS),
}
ERROR = {
    "train_error": Look("train error", style.ERROR, _DASHED, "D", filled=False),
    "test_error": Look("test error", style.ERROR, "solid", "^"),
}
ACCURACIES = {
    "test_acc": Look("standard", "#3d3d3d"),
    "pgd_acc": Look("adversarial", "#3d3d3d", _DASHED, "s", filled=False),
}
Looks = Mapping[int, Look]  # by strength
_PRINTED = {
    "train_acc": "training accuracy (%)",
    "test_acc": "test accuracy (%)",
    "train_loss": "training loss (nats)",
    "test_loss": "test loss (nats)",
}


def draw(name: str, runs: Sequence[Run], *, compare: Sequence[int], svg: Path, png: Path) -> None:
    """Draw a figure and write it as SVG and PNG. The same tables give bit-identical files.

    name: a key of FIGURES, such as "fig1" for the paper's Figure 1; runs: those that the figure shows, as returned by
    catalogue.select_runs; compare: the two strengths (1/255) at which layers are shown.
    """
    style.save(compose(name, runs, compare), svg, png)


def compose(name: str, runs: Sequence[Run], compare: Sequence[int]) -> Figure:
    """Draw a figure without writing it. Raises KeyError if name is not in FIGURES."""
    with mpl.rc_context(style.THEME):
        figure = FIGURES[name](runs, compare, style.by_strength(list_strengths(runs)))
        if flagged := [f"{run['dataset']}/{run['variant']}" for run in runs if failed_masking_checks(run)]:
            style.add_warning(
                figure, f"Adversarial accuracies say little, for gradients are hidden: {', '.join(flagged)}"
            )
        return figure


def fig1(runs: Sequence[Run], compare: Sequence[int], looks: Looks) -> Figure:
    """Draw (a) the spread of singular values per layer, (b) test margins, (c) standard and adversarial accuracy."""
    sections = [
        Section("(a) singular values", lambda ax, members: spectra_std(ax, members, compare, looks), shared="all"),
        Section("(b) margins, test set", lambda ax, members: margins(ax, members, "test", looks)),
        Section("(c) accuracy", _draw_accuracy, over_strength=True),
    ]
    return grid.arrange(group_by_setting(runs), [sections], [*looks.values(), *ACCURACIES.values()])[0]


def fig3(runs: Sequence[Run], _compare: Sequence[int], _looks: Looks) -> Figure:
    """Draw (a) loss and error gaps, (b) train and test losses and errors, against AR."""
    return grid.arrange(group_by_setting(runs), [_gap_sections("none")])[0]


def fig4(runs: Sequence[Run], _compare: Sequence[int], looks: Looks) -> Figure:
    """Draw test and training margins at every strength, with one column per setting (also Figure 10)."""
    sections = [
        Section("(a, b) margins, test set", lambda ax, members: margins(ax, members, "test", looks)),
        Section("(c, d) margins, training set", lambda ax, members: margins(ax, members, "train", looks)),
    ]
    figure, panels = grid.arrange(
        group_by_setting(runs), [sections], [replace(look, marker="") for look in looks.values()]
    )
    for pair in zip(*panels, strict=True):
        grid.share_vertical_range(pair)
    return figure


def fig5(runs: Sequence[Run], compare: Sequence[int], looks: Looks) -> Figure:
    """Draw histograms of (a) probability and (b) loss on the test set; (c, d) the spread per layer (also Figure 11)."""
    histograms = [
        Section(heading, _histogram_drawer(column, looks), height=2.5, across=2)
        for heading, column in (
            ("(a) estimated probability of the label, test set", "prob"),
            ("(b) loss, test set", "loss"),
        )
    ]
    spectra = Section(
        "(c, d) spread of singular values per layer",
        lambda ax, members: spectra_(ax, members, compare, looks),
        across=1,
        shared="all",
    )
    return grid.arrange(group_by_setting(runs), [histograms, [spectra]], list(looks.values()))[0]


def fig6(runs: Sequence[Run], _compare: Sequence[int], _looks: Looks) -> Figure:
    """Draw Figure 3 for every bound on the layers, so that complexity falls from the first panel to the last."""
    settings = sorted(group_by_setting(runs).items(), key=lambda item: (_network_key(item[1][0]), -_bound(item[1][0])))
    named = {name if _bound(members[0]) < np.inf else f"{name}, no bound": members for name, members in settings}
    return grid.arrange(named, [_gap_sections("all")])[0]


def fig7(runs: Sequence[Run], _compare: Sequence[int], _looks: Looks) -> Figure:
    """Draw Figure 3 with one scale for all architectures of a data set."""
    return grid.arrange(group_by_setting(runs), [_gap_sections("data set")])[0]


def fig8(runs: Sequence[Run], _compare: Sequence[int], _looks: Looks) -> Figure:
    """Draw the largest loss variation that was found within eps of a test example, against AR."""
    words = {"normalised": "\N{MULTIPLICATION SIGN} std in normalised space", "symmetric": "half in symmetric space"}
    others = sorted({split_spaces(run["space"])[1] for run in runs} - {"pixel"})
    unit = f" ({', '.join(words[space] for space in others)})" if others else ""
    radii = style.by_radius(gather(runs, "lossvar", ["eps"])["eps"].unique().tolist(), unit)
    section = Section("", lambda ax, members: variation(ax, members, radii), height=2.5, over_strength=True)
    return grid.arrange(group_by_setting(runs), [[section]], list(radii.values()))[0]


def fig9(runs: Sequence[Run], _compare: Sequence[int], _looks: Looks) -> Figure:
    """Draw (a) the loss gap and (b) train and test errors, against AR."""
    sections = [
        _metric_section("(a) loss gap: test \N{MINUS SIGN} train", LOSS_GAP, "loss gap (nats)"),
        _metric_section("(b) error on train and test", ERROR, "error (%)"),
    ]
    return grid.arrange(group_by_setting(runs), [sections])[0]


def fig12(runs: Sequence[Run], _compare: Sequence[int], _looks: Looks) -> Figure:
    """Draw the adversarial accuracy of all settings against AR, (a) conditional as in the paper, (b) unconditional.

    Every perturbation space has a row of panels, because the radius of the evaluation attack is another one, too.
    Published accuracies are of attacks in pixel space.
    """
    settings = group_by_setting(runs)
    looks = style.by_setting(list(settings))
    order = list(SPACES)  # pixel space first
    spaces = sorted({run["space"] for run in runs}, key=lambda space: [*map(order.index, split_spaces(space))])
    figure = Figure(figsize=(style.WIDTH, 0.3 + 2.6 * len(spaces) + 0.1 * len(settings)), layout="constrained")
    stars = []
    for space, row in zip(spaces, figure.subplots(len(spaces), 2, sharey=True, squeeze=False), strict=True):
        own = {name: members for name, members in settings.items() if members[0]["space"] == space}
        _draw_adversarial_accuracies(row, own, looks, "" if spaces == ["pixel"] else f",\n{space} space")
        if space == "pixel":
            shown = [run for members in own.values() for run in members]
            points = {(point["ar"], point["robust_acc"], point["label"]) for run in shown for point in run["published"]}
            stars = [published_point(row[1], *point) for point in sorted(points)]
    style.legend(figure, [*looks.values(), *stars])
    return figure


def spread(runs: Sequence[Run], compare: Sequence[int], looks: Looks) -> Figure:
    """Draw how strongly layers amplify random and PGD perturbations, and how much the margin changes."""
    settings = {name: runs_at_strengths(members, compare) for name, members in group_by_setting(runs).items()}
    figure = Figure(figsize=(style.WIDTH, 2.4 * len(settings) + 0.4), layout="constrained")
    parts = figure.subfigures(len(settings), 1, squeeze=False).ravel()
    for part, (name, members) in zip(parts, settings.items(), strict=True):
        frame = gather(members, "spread")
        *wide, narrow = part.subplots(1, 3, width_ratios=(3, 3, 1.7))
        for ax, (kind, title) in zip(wide, KINDS.items(), strict=True):
            layer_amplification(ax, frame[frame["perturbation"] == kind], looks)
            ax.set_title(f"{title} perturbations")
        grid.share_vertical_range(wide)
        wide[1].set_ylabel("")
        margin_change(narrow, frame[frame["layer"] == 0], looks)
        narrow.set_title("margin")
        part.suptitle(name, x=0.008, ha="left", fontsize=9, fontweight="bold")
    shown = list_strengths([run for members in settings.values() for run in members])
    statistics = [Look("mean over examples", "#3d3d3d"), std_look(Look("std over examples", "#3d3d3d"))]
    style.legend(figure, [*(mean_look(looks[ar]) for ar in shown), *statistics])
    return figure


def conventions(runs: Sequence[Run], _compare: Sequence[int], _looks: Looks) -> Figure:
    """Draw clean accuracies and losses of all settings against the stated AR strength, with the paper's points.

    One row of panels per data set of the paper. The strength is as stated, in the run's own space, because the paper's
    space is what is looked for. Settings of standard training alone are points at AR 0.
    """
    settings, printed = group_by_setting(runs), read_reference()
    looks = style.by_setting(list(settings))
    datasets = list(dict.fromkeys(run["paper"] for run in runs))
    figure = Figure(figsize=(style.WIDTH, 0.4 + 2.5 * len(datasets) + 0.18 * len(settings)), layout="constrained")
    for dataset, row in zip(datasets, figure.subplots(len(datasets), 4, squeeze=False), strict=True):
        for ax, (column, label) in zip(row, _PRINTED.items(), strict=True):
            for name, members in settings.items():
                if own := [run for run in members if run["paper"] == dataset]:
                    metric_lines(ax, _read_metrics(own), {column: looks[name]}, ylabel=label, x="ar")
            names = {paper_name(run["arch"]) for run in runs if run["paper"] == dataset}
            points = printed[(printed["metric"] == column) & (printed["dataset"] == dataset)]
            points = points[points["arch"].isin(names) & points["spectral_norm"].isna()]
            points = points.drop_duplicates(["arch", "train_attack", "ar"])  # Table 6 repeats Table 3
            for attack, marker in (("pgd", "x"), ("fgsm", "+")):
                part = points[points["train_attack"] == attack]
                ax.plot(part["ar"], part["paper"], marker, color="#c00000", markersize=7, markeredgewidth=1.8, zorder=5)
            ax.relim()
            ax.margins(0.15, 0.08)
            ax.autoscale()  # to the points of the paper, too
            ax.set_xlabel("stated AR (1/255)")
        row[0].set_title(f"stands for the paper's {dataset}", loc="left")
    stars = [Look(f"the paper, {words}", "#c00000", "none", marker) for words, marker in (("PGD", "x"), ("FGSM", "+"))]
    style.legend(figure, [*looks.values(), *stars])
    return figure


FIGURES: dict[str, Callable[[Sequence[Run], Sequence[int], Looks], Figure]] = {
    "fig1": fig1,
    "fig2": lambda *_: figure2.fig2(),
    "fig3": fig3,
    "fig4": fig4,
    "fig5": fig5,
    "fig6": fig6,
    "fig7": fig7,
    "fig8": fig8,
    "fig9": fig9,
    "fig10": fig4,
    "fig11": fig5,
    "fig12": fig12,
    "spread": spread,
    "conventions": conventions,
}


def _read_metrics(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per run: KEYS, the columns of metrics.parquet as floats (NaN for null), both errors, and radius.

    radius: of training, in pixels (1/255).
    """
    frame = gather(runs, "metrics")
    numbers = frame.drop(columns=KEYS).astype("float64")
    errors = {f"{split}_error": 100 - numbers[f"{split}_acc"] for split in ("train", "test")}
    radius = [run["ar"] * strength_axis.pixels_per_unit(run) for run in runs]
    return frame[KEYS].join(numbers.assign(**errors, radius=radius))


def _metric_section(heading: str, looks: Mapping[str, Look], ylabel: str) -> Section:
    def fill(ax: Axes, members: Sequence[Run]) -> None:
        metric_lines(ax, _read_metrics(members), looks, ylabel=ylabel)

    return Section(heading, fill, list(looks.values()), over_strength=True)


def _draw_accuracy(ax: Axes, members: Sequence[Run]) -> None:
    metric_lines(ax, _read_metrics(members), ACCURACIES, ylabel="accuracy (%)")
    ax.set_ylim(0, 100)


def _draw_adversarial_accuracies(
    row: Sequence[Axes], settings: Mapping[str, Sequence[Run]], looks: Mapping[str, Look], space: str
) -> None:
    """Fill a row of Figure 12 with settings of one space; space: is added to the label of the vertical axis."""
    shown = [run for members in settings.values() for run in members]
    parts = (("pgd_acc", "(a) of those correct when clean"), ("robust_acc", "(b) of all test examples"))
    for ax, (column, title) in zip(row, parts, strict=True):
        for name, members in settings.items():
            metric_lines(ax, _read_metrics(members), {column: looks[name]}, ylabel=f"adversarial accuracy (%){space}")
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set_ylim(0, 100)
        strength_axis.set_strengths(ax, shown)
        ax.set_xlim(strength_axis.limits(shown))


def _gap_sections(shared: Shared) -> list[Section]:
    """Return the sections (a) gaps and (b) their parts, with losses on the left axis and errors on the right one."""
    return [
        _twin_section("(a) gap: test \N{MINUS SIGN} train", LOSS_GAP, ERROR_GAP, label=" gap", shared=shared),
        _twin_section("(b) train and test", LOSS, ERROR, label="", shared=shared),
    ]


def _twin_section(
    heading: str, left: Mapping[str, Look], right: Mapping[str, Look], *, label: str, shared: Shared
) -> Section:
    def fill(ax: Axes, members: Sequence[Run]) -> Axes:
        return losses_and_errors(ax, _read_metrics(members), left, right, label)

    return Section(heading, fill, [*left.values(), *right.values()], shared=shared, over_strength=True)


def _histogram_drawer(column: str, looks: Looks) -> Callable[[Axes, Sequence[Run]], None]:
    """Return a function that draws a histogram of test examples, and its middle range as an inset in its empty part."""

    def fill(ax: Axes, members: Sequence[Run]) -> None:
        frame = gather(members, "margins", ["split", column]).query("split == 'test'")
        bins = PROBABILITY if column == "prob" else _loss_bins(frame["loss"].max())
        histogram(ax, frame, column, bins, looks)
        box = (0.2, 0.36, 0.67, 0.54) if column == "prob" else (0.26, 0.36, 0.7, 0.54)
        make_room_for_inset(ax, box, margin=0.09)
        inset = ax.inset_axes(box)
        histogram(inset, frame, column, bins[MIDDLE[column]], looks)
        inset.set_title("middle range", fontsize=8)
        (left, right), (bottom, top) = inset.get_xlim(), inset.get_ylim()
        ax.indicate_inset((left, bottom, right - left, top - bottom), edgecolor="#555555")
        ax.set_ylabel("test examples in a bin (%)")
        ax.set_xlabel("estimated probability of the label" if column == "prob" else "loss (nats)")

    return fill


def _loss_bins(largest: float) -> np.ndarray:
    return np.arange(0, max(largest, 10 * LOSS_BIN) + LOSS_BIN, LOSS_BIN)


def _network_key(run: Run) -> tuple[str, str, str]:
    return run["dataset"], run["arch"], run["space"]


def _bound(run: Run) -> float:
    return np.inf if run["spectral_norm"] is None else float(run["spectral_norm"])
