"""The figures and tables of a study: which of its runs, and which measures of them, each is made from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Run = Mapping[str, Any]  # what identifies a run (config.study_runs), and "folder", where its tables are
Choice = Callable[[Sequence[Run]], list[Run]]


@dataclass(frozen=True)
class Item:
    """needs: the measures (files of a run) that it is made from; choose: which runs it shows; title: for its label."""

    title: str
    needs: tuple[str, ...]
    choose: Choice


def _plain(runs: Sequence[Run]) -> list[Run]:
    """Trained with PGD, without a bound, on the data set's default architecture."""
    return [run for run in _any_network(runs) if run["arch"] == run["default_arch"]]


def _any_network(runs: Sequence[Run]) -> list[Run]:
    """Trained with PGD (or standard), without a bound."""
    return [run for run in runs if run["train_attack"] == "pgd" and run["spectral_norm"] is None]


def _other_network(runs: Sequence[Run]) -> list[Run]:
    return [run for run in _any_network(runs) if run["arch"] != run["default_arch"]]


def _fgsm(runs: Sequence[Run]) -> list[Run]:
    """Trained with FGSM, and the like without any attack."""
    of = {_place(run) for run in runs if run["train_attack"] == "fgsm"}
    standard = [run for run in _any_network(runs) if run["ar"] == 0 and _place(run) in of]
    return [run for run in runs if run["train_attack"] == "fgsm" or run in standard]


def _bounded(runs: Sequence[Run]) -> list[Run]:
    """With a bound on the spectral norm, and the like without one."""
    of = {_place(run) for run in runs if run["spectral_norm"] is not None}
    return [run for run in runs if _place(run) in of and run["train_attack"] == "pgd"]


def _every(runs: Sequence[Run]) -> list[Run]:
    return list(runs)


def _none(_: Sequence[Run]) -> list[Run]:
    return []


def _place(run: Run) -> tuple[str, str, str]:
    return run["dataset"], run["arch"], run["space"]


FIGURES = {
    "fig1": Item("Spread of singular values, margins, accuracy", ("svstd", "margins", "metrics"), _plain),
    "fig2": Item("Instance-space margin; a segment through the linear regions of a ReLU network", (), _none),
    "fig3": Item("Gaps, losses and errors", ("metrics",), _plain),
    "fig4": Item("Margins, training and test", ("margins",), _plain),
    "fig5": Item("Probabilities, losses, spread of singular values", ("margins", "svstd"), _plain),
    "fig6": Item("Gaps, losses and errors under a bound on the spectral norm", ("metrics",), _bounded),
    "fig7": Item("Gaps, losses and errors of the deeper network", ("metrics",), _other_network),
    "fig8": Item("Loss variation", ("lossvar",), _plain),
    "fig9": Item("FGSM: loss gap and errors", ("metrics",), _fgsm),
    "fig10": Item("FGSM: margins", ("margins",), _fgsm),
    "fig11": Item("FGSM: probabilities, losses, spread of singular values", ("margins", "svstd"), _fgsm),
    "fig12": Item("Adversarial accuracy", ("metrics",), _any_network),
    "spread": Item("How evenly layers pass perturbations on (extension)", ("spread",), _plain),
}
TABLES = {
    "table1": Item("Loss variation", ("lossvar",), _plain),
    "table2": Item("FGSM: accuracy, losses, gap", ("metrics",), _fgsm),
    "table3": Item("Accuracies, losses, gaps (CIFAR-10)", ("metrics",), _any_network),
    "table4": Item("Accuracies, losses, gaps (CIFAR-100)", ("metrics",), _any_network),
    "table5": Item("Accuracies, losses, gaps (Tiny-ImageNet)", ("metrics",), _any_network),
    "table6": Item("Accuracies, losses, gaps by bound on the spectral norm", ("metrics",), _bounded),
    "b2": Item("Decrease and increase of the std of singular values", ("svstd",), _plain),
    "attacks": Item("Every attack on every network (extension)", ("attacks",), _every),
    "padding": Item("Circular and zero-padded spectra (extension)", ("padding",), _every),
    "theory": Item("Quantities of Theorem 3.1 and Lemma 3.1 (extension)", ("theory",), _every),
}


def select_runs(name: str, runs: Sequence[Run], datasets: Sequence[str] | None = None) -> list[Run]:
    """Choose the runs that a figure or table shows; datasets: only of these, None for all that the study has."""
    item = {**FIGURES, **TABLES}[name]
    return item.choose([run for run in runs if datasets is None or run["dataset"] in datasets])
