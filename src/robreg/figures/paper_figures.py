"""Draw the paper's figures from the tables of a study's runs, with one panel per setting and the paper's sections."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robreg.figures import figure2, grid, style
from robreg.figures.accuracy_figures import conventions, fig12
from robreg.figures.distributions import Statistic, histogram, variation
from robreg.figures.example_images import examples
from robreg.figures.gap_figures import fig3, fig6, fig7, fig9
from robreg.figures.grid import Section
from robreg.figures.lone import Panel, choose_panels
from robreg.figures.metric_panels import metric_section
from robreg.figures.panels import (
    KINDS,
    layer_amplification,
    margin_change,
    margins,
    mean_look,
    spectra_std,
    std_look,
)
from robreg.figures.series import Looks, choose_looks
from robreg.figures.style import Look
from robreg.runs.catalogue import Run
from robreg.runs.variant import split_spaces
from robreg.tables.study_tables import failed_masking_checks, gather

ACCURACIES = {
    "test_acc": Look("standard", "#3d3d3d"),
    "pgd_acc": Look("adversarial", "#3d3d3d", (0, (4, 2)), "s", filled=False),
}


def draw(name: str, runs: Sequence[Run], *, svg: Path, png: Path) -> None:
    """Draw a figure and write it as SVG and PNG. The same tables give bit-identical files.

    name: a key of FIGURES, such as "fig1" for the paper's Figure 1; runs: those that the figure shows, as returned by
    catalogue.select_runs.
    """
    style.save(compose(name, runs), svg, png)


def compose(name: str, runs: Sequence[Run]) -> Figure:
    """Draw a figure without writing it. Raises KeyError if name is not in FIGURES."""
    with mpl.rc_context(style.THEME):
        figure = FIGURES[name](runs)
        if flagged := [f"{run['dataset']}/{run['variant']}" for run in runs if failed_masking_checks(run)]:
            style.add_warning(
                figure, f"Adversarial accuracies say little, for gradients are hidden: {', '.join(flagged)}"
            )
        return figure


def fig1(runs: Sequence[Run]) -> Figure:
    """Draw (a) the spread of singular values per layer, (b) test margins, (c) standard and adversarial accuracy."""
    panels = choose_panels(runs)
    looks = choose_looks(panels)
    accuracy = metric_section("(c) accuracy", ACCURACIES, "accuracy (%)", guests=looks.guests)

    def draw_accuracy(ax: Axes, panel: Panel) -> None:
        accuracy.draw(ax, panel)
        ax.set_ylim(0, 100)

    sections = [
        Section("(a) singular values", lambda ax, panel: spectra_std(ax, looks.series(panel)), shared="all"),
        Section("(b) margins, test set", lambda ax, panel: margins(ax, looks.series(panel), "test")),
        replace(accuracy, draw=draw_accuracy, looks=(), height=2.1),
    ]
    return grid.arrange(panels, [sections], [*looks.every, *ACCURACIES.values()])[0]


def fig4(runs: Sequence[Run]) -> Figure:
    """Draw test and training margins at every strength, with one column per setting (also Figure 10)."""
    panels = choose_panels(runs)
    looks = choose_looks(panels)
    sections = [
        Section("(a, b) margins, test set", lambda ax, panel: margins(ax, looks.series(panel), "test")),
        Section("(c, d) margins, training set", lambda ax, panel: margins(ax, looks.series(panel), "train")),
    ]
    figure, drawn = grid.arrange(panels, [sections], [replace(look, marker="") for look in looks.every])
    for pair in zip(*drawn, strict=True):
        grid.share_vertical_range(pair)
    return figure


def fig5(runs: Sequence[Run]) -> Figure:
    """Draw histograms of (a) probability and (b) loss on the test set; (c, d) the spread per layer (also Figure 11)."""
    panels = choose_panels(runs)
    looks = choose_looks(panels)
    spectra = Section(
        "(c, d) spread of singular values per layer",
        lambda ax, panel: spectra_std(ax, looks.series(panel)),
        across=1,
        shared="all",
    )
    histograms = [
        Section(f"({letter}) {words}, test set", _histogram_of(column, looks), height=2.5, across=2)
        for letter, words, column in (("a", "estimated probability of the label", "prob"), ("b", "loss", "loss"))
    ]
    return grid.arrange(panels, [histograms, [spectra]], looks.every)[0]


def _histogram_of(column: str, looks: Looks) -> Callable[[Axes, Panel], None]:
    return lambda ax, panel: histogram(ax, looks.series(panel), column)


def fig8(runs: Sequence[Run]) -> Figure:
    """Draw (a) mean and (b) std over test examples of the loss variation within each radius eps, against AR."""
    panels = choose_panels(runs)
    radii = style.by_radius(gather(runs, "lossvar", ["eps"])["eps"].unique().tolist(), _unit_of_radii(runs))
    guests = {name: replace(look, color="#3d3d3d") for name, look in choose_looks(panels).guests.items()}

    def section(heading: str, statistic: Statistic) -> Section:
        def fill(ax: Axes, panel: Panel) -> None:
            variation(ax, panel.runs, radii, statistic)
            for name, members in panel.guests.items():
                variation(ax, members, _with_marker(radii, guests[name]), statistic)

        return Section(heading, fill, height=2.5, over_strength=True)

    sections = [section("(a) mean over test examples", "mean"), section("(b) std over test examples", "std")]
    return grid.arrange(panels, [sections], [*radii.values(), *guests.values()])[0]


def _unit_of_radii(runs: Sequence[Run]) -> str:
    words = {"normalised": "\N{MULTIPLICATION SIGN} std in normalised space", "symmetric": "half in symmetric space"}
    others = sorted({split_spaces(run["space"])[1] for run in runs} - {"pixel"})
    return f" ({', '.join(words[space] for space in others)})" if others else ""


def _with_marker(looks: Mapping[float, Look], guest: Look) -> dict[float, Look]:
    return {key: replace(look, marker=guest.marker) for key, look in looks.items()}


def spread(runs: Sequence[Run]) -> Figure:
    """Draw how strongly layers amplify random and PGD perturbations, and how much the margin changes."""
    panels = choose_panels(runs)
    looks = choose_looks(panels)
    statistics = [Look("mean over examples", "#3d3d3d"), std_look(Look("std over examples", "#3d3d3d"))]
    entries = [*map(mean_look, looks.every), *statistics]
    figure = Figure(figsize=(style.WIDTH, 2.4 * len(panels) + style.legend_height(entries) + 0.2), layout="constrained")
    for part, panel in zip(figure.subfigures(len(panels), 1, squeeze=False).ravel(), panels, strict=True):
        *wide, narrow = part.subplots(1, 3, width_ratios=(3, 3, 1.7))
        for ax, (kind, title) in zip(wide, KINDS.items(), strict=True):
            layer_amplification(ax, looks.series(panel), kind)
            ax.set_title(f"{title} perturbations")
        grid.share_vertical_range(wide)
        wide[1].set_ylabel("")
        margin_change(narrow, looks.series(panel))
        narrow.set_title("margin")
        part.suptitle(panel.name, x=0.008, ha="left", fontsize=9, fontweight="bold")
    style.legend(figure, entries)
    return figure


FIGURES: dict[str, Callable[[Sequence[Run]], Figure]] = {
    "fig1": fig1,
    "fig2": lambda _: figure2.fig2(),
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
    "examples": examples,
    "conventions": conventions,
}
