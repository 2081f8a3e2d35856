"""Draw the accuracies of all settings in common panels: Figure 12, and the conventions that the paper leaves open."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robreg.figures import strength_axis, style
from robreg.figures.metric_panels import metric_lines, read_metrics
from robreg.figures.panels import published_point
from robreg.figures.style import Look
from robreg.paper.reference import read_reference
from robreg.runs.catalogue import Run
from robreg.runs.groups import group_by_setting, list_strengths
from robreg.runs.variant import SPACES, paper_name, split_spaces

_ACCURACIES = {"pgd_acc": "(a) of those correct when clean", "robust_acc": "(b) of all test examples"}
_PRINTED = {
    "train_acc": "training accuracy (%)",
    "test_acc": "test accuracy (%)",
    "train_loss": "training loss (nats)",
    "test_loss": "test loss (nats)",
}


def fig12(runs: Sequence[Run]) -> Figure:
    """Draw the adversarial accuracy of all settings against AR, (a) conditional as in the paper, (b) unconditional.

    Every perturbation space has a row of panels, because the radius of the evaluation attack is another one, too; a
    space whose settings have one strength each joins the first row. Published accuracies are of attacks in pixel space.
    """
    settings = group_by_setting(runs)
    looks = style.by_setting(list(settings))
    rows = _split_by_space(settings)
    figure = Figure(figsize=(style.WIDTH, 0.3 + 2.6 * len(rows) + 0.1 * len(settings)), layout="constrained")
    stars = []
    for (space, own), row in zip(rows.items(), figure.subplots(len(rows), 2, sharey=True, squeeze=False), strict=True):
        shown = [run for members in own.values() for run in members]
        native = [run for run in shown if run["space"] == space]
        suffix = "" if list(rows) == ["pixel"] else f",\n{space} space"
        for ax, (column, title) in zip(row, _ACCURACIES.items(), strict=True):
            for name, members in own.items():
                metric_lines(
                    ax, read_metrics(members), {column: looks[name]}, ylabel=f"adversarial accuracy (%){suffix}"
                )
            ax.set_title(title, loc="left", fontweight="bold")
            ax.set_ylim(0, 100)
            strength_axis.set_strengths(ax, native)
            ax.set_xlim(strength_axis.limits(shown))
        if space == "pixel":
            points = {
                (point["ar"], point["robust_acc"], point["label"]) for run in native for point in run["published"]
            }
            stars = [published_point(row[1], *point) for point in sorted(points)]
    style.legend(figure, [*looks.values(), *stars])
    return figure


def _split_by_space(settings: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Sequence[Run]]]:
    """Split settings by the space of their perturbations, pixel space first; spaces of single points join the first."""
    order = list(SPACES)
    rows: dict[str, dict[str, Sequence[Run]]] = {}
    for name, members in settings.items():
        rows.setdefault(members[0]["space"], {})[name] = members
    spaces = sorted(rows, key=lambda space: [*map(order.index, split_spaces(space))])
    wide = [space for space in spaces if any(len(list_strengths(one)) > 1 for one in rows[space].values())] or spaces[
        :1
    ]
    joined = {space: rows[space] for space in wide}
    for space in spaces:
        if space not in wide:
            joined[wide[0]] |= rows[space]
    return joined


def conventions(runs: Sequence[Run]) -> Figure:
    """Draw clean accuracies and losses of all settings against the stated AR strength, with the paper's points.

    One row of panels per data set of the paper. The strength is as stated, in the run's own space, because the paper's
    space is what is looked for. Settings of standard training alone are points at AR 0.
    """
    settings = group_by_setting(runs)
    looks = style.by_setting(list(settings))
    datasets = list(dict.fromkeys(run["paper"] for run in runs))
    figure = Figure(figsize=(style.WIDTH, 0.4 + 2.5 * len(datasets) + 0.18 * len(settings)), layout="constrained")
    for dataset, row in zip(datasets, figure.subplots(len(datasets), 4, squeeze=False), strict=True):
        networks = {paper_name(run["arch"]) for run in runs if run["paper"] == dataset}
        for ax, (column, label) in zip(row, _PRINTED.items(), strict=True):
            for name, members in settings.items():
                if shown := [run for run in members if run["paper"] == dataset]:
                    metric_lines(ax, read_metrics(shown), {column: looks[name]}, ylabel=label, x="ar")
            _draw_printed(ax, column, dataset, networks)
        row[0].set_title(f"stands for the paper's {dataset}", loc="left")
    stars = [Look(f"the paper, {words}", "#c00000", "none", marker) for words, marker in (("PGD", "x"), ("FGSM", "+"))]
    style.legend(figure, [*looks.values(), *stars])
    return figure


def _draw_printed(ax: Axes, column: str, dataset: str, architectures: set[str]) -> None:
    """Draw the numbers that the paper prints as crosses (PGD) and plus signs (FGSM)."""
    printed = read_reference()
    points = printed[(printed["metric"] == column) & (printed["dataset"] == dataset)]
    points = points[points["arch"].isin(architectures) & points["spectral_norm"].isna()]
    points = points.drop_duplicates(["arch", "train_attack", "ar"])  # Table 6 repeats Table 3
    for attack, marker in (("pgd", "x"), ("fgsm", "+")):
        part = points[points["train_attack"] == attack]
        ax.plot(part["ar"], part["paper"], marker, color="#c00000", markersize=7, markeredgewidth=1.8, zorder=5)
    ax.relim()
    ax.margins(0.15, 0.08)
    ax.autoscale()  # to the points of the paper, too
    ax.set_xlabel("stated AR (1/255)")
