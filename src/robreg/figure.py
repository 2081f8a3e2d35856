"""The paper's figures, drawn from the tables of a study's runs: panels per setting, letters per quantity."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robreg import panel, style
from robreg.setting import group, strengths
from robreg.study import KEYS, Run, gather
from robreg.style import Look

PROBABILITY = np.linspace(0, 1, 11)
LOSS_BIN = 0.25  # nats
MIDDLE = {"prob": slice(1, -1), "loss": slice(1, 10)}  # of the bins' edges: 0.1 to 0.9, and 0.25 to 2.25

ACCURACIES = {
    "test_acc": Look("standard", "#3d3d3d"),
    "pgd_acc": Look("adversarial", "#3d3d3d", (0, (4, 2)), "s", filled=False),
}
ADVERSARIAL = {
    "pgd_acc": Look("of those correct when clean", "#3d3d3d"),
    "robust_acc": Look("of all test examples", "#9a9a9a", (0, (4, 2)), "s", filled=False),
}


def draw(name: str, runs: Sequence[Run], *, compare: Sequence[int], svg: Path, png: Path) -> None:
    """Draw a figure, bearing the paper's name for it ("fig1"), and write it as SVG and PNG.

    runs: config.study_runs; compare: the two strengths (1/255) at which spectra are shown. Equal tables give equal
    bytes.
    """
    style.save(compose(name, runs, compare), svg, png)


def compose(name: str, runs: Sequence[Run], compare: Sequence[int]) -> Figure:
    """Compose a figure without writing it. Raises KeyError for a name that is not in FIGURES."""
    with mpl.rc_context(style.THEME):
        return FIGURES[name](runs, compare, style.by_strength(strengths(runs)))


def fig1(runs: Sequence[Run], compare: Sequence[int], looks: Mapping[int, Look]) -> Figure:
    """(a) Spread of singular values per layer, (b) test margins, (c) standard and adversarial accuracy."""
    settings = group(runs)
    figure, axes = _grid(len(settings), 3, height=2.5)
    for row, (name, members) in zip(axes, settings.items(), strict=True):
        panel.spectra(row[0], members, compare, looks)
        panel.margins(row[1], members, "test", looks)
        panel.metric(row[2], _metrics(members), ACCURACIES, ylabel="accuracy (%)")
        _title(row, "abc", name)
    style.legend(figure, [*looks.values(), *ACCURACIES.values()])
    return figure


def fig3(runs: Sequence[Run], compare: Sequence[int], looks: Mapping[int, Look]) -> Figure:
    """(a) Gaps of loss and error, (b) loss and error on train and test, against AR."""
    settings = group(runs)
    figure, axes = _grid(2 * len(settings), 2, height=2.3)
    for pair, (name, members) in zip(axes.reshape(-1, 2, 2), settings.items(), strict=True):
        frame = _metrics(members)
        panel.metric(pair[0, 0], frame, {"loss_gap": style.GAP}, ylabel="loss gap (nats)")
        panel.metric(pair[0, 1], frame, {"acc_gap": style.GAP}, ylabel="error gap (% points)")
        panel.metric(pair[1, 0], frame, {"train_loss": style.TRAIN, "test_loss": style.TEST}, ylabel="loss (nats)")
        panel.metric(pair[1, 1], frame, {"train_error": style.TRAIN, "test_error": style.TEST}, ylabel="error (%)")
        _title(pair.ravel(), "aabb", name)
    style.legend(figure, [style.GAP, style.TRAIN, style.TEST])
    return figure


def fig4(runs: Sequence[Run], compare: Sequence[int], looks: Mapping[int, Look]) -> Figure:
    """Margins on train and test at every strength."""
    settings = group(runs)
    figure, axes = _grid(len(settings), 2, height=2.6)
    for row, (name, members) in zip(axes, settings.items(), strict=True):
        for ax, split in zip(row, ("train", "test"), strict=True):
            panel.margins(ax, members, split, looks)
            ax.set_title(f"{name}, {split} set")
        _share_y(row)
    style.legend(figure, list(looks.values()), markers=False)
    return figure


def fig5(runs: Sequence[Run], compare: Sequence[int], looks: Mapping[int, Look]) -> Figure:
    """(a) Estimated probability and (b) loss of test examples, middle range inset; (c) spread of singular values."""
    settings = group(runs)
    figure = Figure(figsize=(style.WIDTH, 5.2 * len(settings)), layout="constrained")
    axes = figure.subplot_mosaic([[f"{row}{letter}" for letter in pair] for row in settings for pair in ("ab", "cc")])
    for name, members in settings.items():
        frame = gather(members, "margins", ["split", "prob", "loss"]).query("split == 'test'")
        row = [axes[f"{name}{letter}"] for letter in "abc"]
        _histograms(row[0], row[1], frame, looks)
        panel.spectra(row[2], members, compare, looks)
        _title(row, "abc", name)
    style.legend(figure, list(looks.values()))
    return figure


def fig8(runs: Sequence[Run], compare: Sequence[int], looks: Mapping[int, Look]) -> Figure:
    """Maximal loss variation within eps of a test example, against AR."""
    radii = style.by_radius(gather(runs, "lossvar", ["eps"])["eps"].unique().tolist())
    figure, axes = _row(group(runs))
    for ax, (name, members) in zip(axes, group(runs).items(), strict=True):
        panel.variation(ax, members, radii)
        ax.set_title(name)
    style.legend(figure, list(radii.values()), title="radius of the perturbation (1/255)")
    return figure


def fig12(runs: Sequence[Run], compare: Sequence[int], looks: Mapping[int, Look]) -> Figure:
    """Accuracy under the evaluation attack against AR."""
    figure, axes = _row(group(runs))
    for ax, (name, members) in zip(axes, group(runs).items(), strict=True):
        panel.metric(ax, _metrics(members), ADVERSARIAL, ylabel="adversarial accuracy (%)")
        ax.set_ylim(top=100)
        ax.set_title(name)
    style.legend(figure, list(ADVERSARIAL.values()))
    return figure


FIGURES: dict[str, Callable[[Sequence[Run], Sequence[int], Mapping[int, Look]], Figure]] = {
    "fig1": fig1,
    "fig3": fig3,
    "fig4": fig4,
    "fig5": fig5,
    "fig8": fig8,
    "fig12": fig12,
}


def _metrics(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: KEYS, the numbers of metrics.parquet as floats (null as nan), train_error and test_error."""
    frame = gather(runs, "metrics")
    numbers = frame.drop(columns=KEYS).astype("float64")
    errors = {f"{split}_error": 100 - numbers[f"{split}_acc"] for split in ("train", "test")}
    return frame[KEYS].join(numbers.assign(**errors))


def _histograms(left: Axes, right: Axes, frame: pd.DataFrame, looks: Mapping[int, Look]) -> None:
    """Histograms of probability and loss; each has its middle range as an inset in its empty half."""
    last = max(frame["loss"].max(), 10 * LOSS_BIN)
    loss = np.arange(0, last + LOSS_BIN, LOSS_BIN)
    for ax, column, bins in ((left, "prob", PROBABILITY), (right, "loss", loss)):
        panel.histogram(ax, frame, column, bins, looks)
        inset = ax.inset_axes((0.16, 0.3, 0.7, 0.66) if ax is left else (0.26, 0.3, 0.7, 0.66))
        panel.histogram(inset, frame, column, bins[MIDDLE[column]], looks)
        ax.indicate_inset_zoom(inset, edgecolor="#555555")
        ax.set_ylabel("test examples in a bin (%)")
    left.set_xlabel("estimated probability of the label")
    right.set_xlabel("loss (nats)")


def _grid(rows: int, columns: int, *, height: float) -> tuple[Figure, np.ndarray]:
    """Make a figure of the full width with rows x columns panels; height of a row in inches."""
    figure = Figure(figsize=(style.WIDTH, rows * height + 0.3), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _row(settings: Mapping[str, Sequence[Run]]) -> tuple[Figure, np.ndarray]:
    """Make a figure with one panel per setting, two in a row; panels that stay empty are not drawn."""
    columns = min(2, len(settings))
    rows = -(-len(settings) // columns)
    figure = Figure(figsize=(style.SINGLE if columns == 1 else style.WIDTH, 2.7 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(settings) :]:
        ax.remove()
    return figure, axes[: len(settings)]


def _title(axes: Iterable[Axes], letters: str, name: str) -> None:
    for ax, letter in zip(axes, letters, strict=True):
        ax.set_title(f"({letter}) {name}")


def _share_y(axes: Iterable[Axes]) -> None:
    """Give panels side by side the same vertical range."""
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(top=top)
