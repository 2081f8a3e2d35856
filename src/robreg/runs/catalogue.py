"""The figures and tables of a study, and the runs and measures that each of them is made from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Run = Mapping[str, Any]  # what identifies a run (see config.study_runs), with the folder of its tables under "folder"
Choice = Callable[[Sequence[Run]], list[Run]]


@dataclass(frozen=True)
class Item:
    """A figure or table.

    title: the text of its label; needs: the measures (files of a run) that it is made from; choose: returns those of
    the given runs that it shows.
    """

    title: str
    needs: tuple[str, ...]
    choose: Choice


def _default_network(runs: Sequence[Run]) -> list[Run]:
    """Choose unbounded runs of PGD or standard training on the data set's default architecture."""
    return [run for run in _unbounded_pgd(runs) if run["arch"] == run["default_arch"]]


def _unbounded_pgd(runs: Sequence[Run]) -> list[Run]:
    """Choose runs of PGD or standard training that have no bound on their layers."""
    return [run for run in runs if run["train_attack"] == "pgd" and run["spectral_norm"] is None]


def _other_networks(runs: Sequence[Run]) -> list[Run]:
    """Choose unbounded runs of PGD or standard training on any other than the default architecture."""
    return [run for run in _unbounded_pgd(runs) if run["arch"] != run["default_arch"]]


def _fgsm_and_standard(runs: Sequence[Run]) -> list[Run]:
    """Choose runs trained with FGSM, and standard training of the same data set, architecture and space."""
    with_fgsm = {_dataset_arch_space(run) for run in runs if run["train_attack"] == "fgsm"}
    standard = [run for run in _unbounded_pgd(runs) if run["ar"] == 0 and _dataset_arch_space(run) in with_fgsm]
    return [run for run in runs if run["train_attack"] == "fgsm" or run in standard]


def _bounded_and_unbounded(runs: Sequence[Run]) -> list[Run]:
    """Choose PGD and standard runs of each data set, architecture and space that has a run with a spectral bound."""
    with_bound = {_dataset_arch_space(run) for run in runs if run["spectral_norm"] is not None}
    return [run for run in runs if _dataset_arch_space(run) in with_bound and run["train_attack"] == "pgd"]


def _all_runs(runs: Sequence[Run]) -> list[Run]:
    return list(runs)


def _no_runs(_: Sequence[Run]) -> list[Run]:
    return []


def _dataset_arch_space(run: Run) -> tuple[str, str, str]:
    return run["dataset"], run["arch"], run["space"]


FIGURES = {
    "fig1": Item("Spread of singular values, margins, accuracy", ("svstd", "margins", "metrics"), _default_network),
    "fig2": Item("Instance-space margin; a segment through the linear regions of a ReLU network", (), _no_runs),
    "fig3": Item("Gaps, losses and errors", ("metrics",), _default_network),
    "fig4": Item("Margins, training and test", ("margins",), _default_network),
    "fig5": Item("Probabilities, losses, spread of singular values", ("margins", "svstd"), _default_network),
    "fig6": Item("Gaps, losses and errors under a bound on every layer", ("metrics",), _bounded_and_unbounded),
    "fig7": Item("Gaps, losses and errors of the deeper network", ("metrics",), _other_networks),
    "fig8": Item("Loss variation", ("lossvar",), _default_network),
    "fig9": Item("FGSM: loss gap and errors", ("metrics",), _fgsm_and_standard),
    "fig10": Item("FGSM: margins", ("margins",), _fgsm_and_standard),
    "fig11": Item("FGSM: probabilities, losses, spread of singular values", ("margins", "svstd"), _fgsm_and_standard),
    "fig12": Item("Adversarial accuracy", ("metrics",), _unbounded_pgd),
    "spread": Item("How evenly layers pass perturbations on (extension)", ("spread",), _default_network),
}
TABLES = {
    "table1": Item("Loss variation", ("lossvar",), _default_network),
    "table2": Item("FGSM: accuracy, losses, gap", ("metrics",), _fgsm_and_standard),
    "table3": Item("Accuracies, losses, gaps (CIFAR-10)", ("metrics",), _unbounded_pgd),
    "table4": Item("Accuracies, losses, gaps (CIFAR-100)", ("metrics",), _unbounded_pgd),
    "table5": Item("Accuracies, losses, gaps (Tiny-ImageNet)", ("metrics",), _unbounded_pgd),
    "table6": Item("Accuracies, losses, gaps by bound on every layer", ("metrics",), _bounded_and_unbounded),
    "b2": Item("Decrease and increase of the std of singular values", ("svstd", "live"), _default_network),
    "attacks": Item("Every attack on every network (extension)", ("attacks",), _all_runs),
    "padding": Item("Circular and zero-padded spectra (extension)", ("padding",), _all_runs),
    "theory": Item("Quantities of Theorem 3.1 and Lemma 3.1 (extension)", ("theory",), _all_runs),
}


def select_runs(name: str, runs: Sequence[Run], datasets: Sequence[str] | None = None) -> list[Run]:
    """Choose the runs that a figure or table shows; datasets: the data sets to choose from, None for all."""
    item = {**FIGURES, **TABLES}[name]
    return item.choose([run for run in runs if datasets is None or run["dataset"] in datasets])
