"""The figures and tables of a study, and the runs and measures that each of them is made from."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robreg.runs.variant import base_attack

Run = Mapping[str, Any]  # what identifies a run (see config.study_runs), with the folder of its tables under "folder"


@dataclass(frozen=True)
class Choice:
    """Which runs figures and tables show.

    choose: returns those of a study's runs; missing: what a study lacks if there are none, in the words of config.yaml.
    """

    choose: Callable[[Sequence[Run]], list[Run]]
    missing: str


@dataclass(frozen=True)
class Item:
    """A figure or table.

    title: the text of its label; needs: the measures (files of a run) that it is made from; choice: the runs that it
    shows; pairs: whether it is made from pairs of runs that differ only in strength, the two of `compare`.
    """

    title: str
    needs: tuple[str, ...]
    choice: Choice
    pairs: bool = False


def select_plain(runs: Sequence[Run]) -> list[Run]:
    """Choose runs of PGD or standard training that have no bound on their layers."""
    return [run for run in runs if base_attack(run["train_attack"]) == "pgd" and run["spectral_norm"] is None]


def _first_seeds(runs: Sequence[Run]) -> list[Run]:
    """Choose, of every strength and setting of the unbounded runs of PGD or standard training, the smallest seed."""
    plain = select_plain(runs)
    first: dict[tuple[Any, ...], int] = {}
    for run in plain:
        first[_kind(run)] = min(run["seed"], first.get(_kind(run), run["seed"]))
    return [run for run in plain if run["seed"] == first[_kind(run)]]


def _kind(run: Run) -> tuple[Any, ...]:
    return *_dataset_arch_space(run), run["train_attack"], run["ar"]


def _several_architectures(runs: Sequence[Run]) -> list[Run]:
    """Choose unbounded runs of PGD or standard training on data sets for which they have several architectures."""
    plain = select_plain(runs)
    pairs = {(run["dataset"], run["arch"]) for run in plain}
    return [run for run in plain if sum(dataset == run["dataset"] for dataset, _ in pairs) > 1]


def _fgsm_and_standard(runs: Sequence[Run]) -> list[Run]:
    """Choose runs trained with FGSM, and standard training of the same data set, architecture and space."""
    with_fgsm = {_dataset_arch_space(run) for run in runs if base_attack(run["train_attack"]) == "fgsm"}
    standard = [run for run in select_plain(runs) if run["ar"] == 0 and _dataset_arch_space(run) in with_fgsm]
    return [run for run in runs if base_attack(run["train_attack"]) == "fgsm" or run in standard]


def _bounded_and_unbounded(runs: Sequence[Run]) -> list[Run]:
    """Choose PGD and standard runs of each data set, architecture and space that has a run with a spectral bound."""
    with_bound = {_dataset_arch_space(run) for run in runs if run["spectral_norm"] is not None}
    return [run for run in runs if _dataset_arch_space(run) in with_bound and base_attack(run["train_attack"]) == "pgd"]


def _of_the_paper(runs: Sequence[Run]) -> list[Run]:
    """Choose runs without a bound on data sets that stand for one of the paper's."""
    return [run for run in runs if run["paper"] is not None and run["spectral_norm"] is None]


def _all_runs(runs: Sequence[Run]) -> list[Run]:
    return list(runs)


def _no_runs(_: Sequence[Run]) -> list[Run]:
    return []


def _dataset_arch_space(run: Run) -> tuple[str, str, str]:
    return run["dataset"], run["arch"], run["space"]


_PLAIN = Choice(select_plain, "runs with attack: [pgd] and no spectral_norm")
_FIRST = Choice(_first_seeds, _PLAIN.missing)
_COMPARED = Choice(_several_architectures, "a second architecture (arch) on a data set, for it compares architectures")
_FGSM = Choice(_fgsm_and_standard, "runs with attack: [fgsm] and a strength above 0")
_BOUNDED = Choice(_bounded_and_unbounded, "runs with a spectral_norm")
_COMPARABLE = Choice(_of_the_paper, "runs of a data set with the key paper, and no spectral_norm")
_ALL = Choice(_all_runs, "runs")
_NONE = Choice(_no_runs, "runs")
FIGURES = {
    "fig1": Item("Spread of singular values, margins, accuracy", ("svstd", "margins", "metrics"), _PLAIN),
    "fig2": Item("Instance-space margin; a segment through the linear regions of a ReLU network", (), _NONE),
    "fig3": Item("Gaps, losses and errors", ("metrics",), _PLAIN),
    "fig4": Item("Margins, training and test", ("margins",), _PLAIN),
    "fig5": Item("Probabilities, losses, spread of singular values", ("margins", "svstd"), _PLAIN),
    "fig6": Item("Gaps, losses and errors under a bound on every layer", ("metrics",), _BOUNDED),
    "fig7": Item("Gaps, losses and errors by architecture", ("metrics",), _COMPARED),
    "fig8": Item("Loss variation", ("lossvar",), _PLAIN),
    "fig9": Item("FGSM: loss gap and errors", ("metrics",), _FGSM),
    "fig10": Item("FGSM: margins", ("margins",), _FGSM),
    "fig11": Item("FGSM: probabilities, losses, spread of singular values", ("margins", "svstd"), _FGSM),
    "fig12": Item("Adversarial accuracy", ("metrics",), _PLAIN),
    "spread": Item("How evenly layers pass perturbations on (extension)", ("spread",), _PLAIN),
    "examples": Item("Test images, clean and attacked (extension)", ("examples",), _FIRST),
    "conventions": Item("Our curves against the paper's points (extension)", ("metrics",), _COMPARABLE),
}
TABLES = {
    "table1": Item("Loss variation", ("lossvar",), _PLAIN),
    "table2": Item("FGSM: accuracy, losses, gap", ("metrics",), _FGSM),
    "table3": Item("Accuracies, losses, gaps (CIFAR-10)", ("metrics",), _PLAIN),
    "table4": Item("Accuracies, losses, gaps (CIFAR-100)", ("metrics",), _PLAIN),
    "table5": Item("Accuracies, losses, gaps (Tiny-ImageNet)", ("metrics",), _PLAIN),
    "table6": Item("Accuracies, losses, gaps by bound on every layer", ("metrics",), _BOUNDED),
    "b2": Item("Decrease and increase of the std of singular values", ("svstd", "live"), _PLAIN, pairs=True),
    "attacks": Item("Every attack on every network (extension)", ("attacks",), _ALL),
    "padding": Item("Circular and zero-padded spectra (extension)", ("padding",), _ALL),
    "theory": Item("Quantities of Theorem 3.1 and Lemma 3.1 (extension)", ("theory",), _ALL),
}
_ITEMS = {**FIGURES, **TABLES}
_PAIR = ("dataset", "arch", "train_attack", "space", "spectral_norm", "seed")  # what a pair of runs has in common


def select_runs(name: str, runs: Sequence[Run], only: Collection[str] | None = None) -> list[Run]:
    """Choose the runs of a study that a figure or table shows.

    only: the data sets and architectures that it is restricted to, such as "c10" and "c100/resnet56"; None for all.
    """
    chosen = _ITEMS[name].choice.choose(runs)
    return [run for run in chosen if only is None or not places(run).isdisjoint(only)]


def places(run: Run) -> set[str]:
    """Return the names by which a figure or table can be restricted to a run: "c10" and "c10/resnet56"."""
    return {run["dataset"], f"{run['dataset']}/{run['arch']}"}


def describe_missing(name: str, shown: Sequence[Run], compare: Sequence[int]) -> str | None:
    """Say what a study lacks for a figure or table; None if it can be made. shown: as returned by select_runs."""
    item = _ITEMS[name]
    if item.needs and not shown:
        return item.choice.missing
    if not item.pairs:
        return None
    if not compare:
        return "a second strength, with the same seed"
    low, high = ({tuple(run[key] for key in _PAIR) for run in shown if run["ar"] == ar} for ar in compare)
    paired = {pair[:2] for pair in low & high}  # data set and architecture
    compared = {dataset for dataset, _ in paired} or {run["dataset"] for run in shown}
    lacking = sorted({(run["dataset"], run["arch"]) for run in shown if run["dataset"] in compared} - paired)
    if lacking:
        both = f"both strengths of compare, {compare[0]} and {compare[1]}, with the same seed"
        return both if not paired else f"{both}, of {', '.join('/'.join(one) for one in lacking)}"
    return None
