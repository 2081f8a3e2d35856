"""Six experiments that decide which conventions can be the paper's, each with a rule that its networks pass or fail.

The rules follow from the numbers that the paper prints, with the tolerances of robreg.paper.conventions.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robreg.paper.conventions import FLOORS, SURVIVORS, TOLERANCES, accuracy_at, mean_metric, radius_with
from robreg.paper.reference import read_reference
from robreg.runs.catalogue import Run
from robreg.runs.variant import base_attack, clean_share, paper_name

PAPER_EPOCHS, SHORT_EPOCHS = 200, 40  # appendix D; and a fifth, which must tell scales apart
SHORT_TRAIN_ACC = 75.0  # percent; the paper's networks of AR 16 have 96, so a fifth of the epochs must bring this much
PGD_AR4 = (
    51.0,
    62.0,
)  # percent that PGD leaves: the paper's other networks of AR 4 have 55 to 58, and 4 to either side
_NOTHING = 0.005  # percent, which is printed as 0.00
_METRICS = {
    "train_acc": ("training accuracy", "%"),
    "test_acc": ("test accuracy", "%"),
    "train_loss": ("training loss", ""),
    "test_loss": ("test loss", ""),
}


@dataclass(frozen=True)
class Outcome:
    """What one experiment says about one kind of network.

    experiment: E1 to E6; question: what it decides; run: one of its runs; epochs: of the training; rule: what the
    network must reach; found: what it has, "" if it did not run; verdict: passes, fails, not known (a network that the
    rule compares with did not run), measured (there is no rule), or not run.
    """

    experiment: str
    question: str
    run: Run
    epochs: int
    rule: str
    found: str
    verdict: str


@dataclass(frozen=True)
class _Part:
    """One condition of a rule. words: the condition; found: what was measured; met: None if it is not known."""

    words: str
    found: str
    met: bool | None


def judge(runs: Sequence[Run], not_run: Sequence[Run], epochs: Mapping[str, int]) -> list[Outcome]:
    """Judge every kind of network of a study by the experiment that it belongs to; seeds are averaged.

    runs: those whose tables exist; not_run: the study's other runs; epochs: of all of them, by "dataset/variant".
    """
    names = {id(run): f"{run['dataset']}/{run['variant']}" for run in (*runs, *not_run)}
    ran = {id(run) for run in runs}
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in (*runs, *not_run):
        experiment = _experiment(run, epochs[names[id(run)]])
        if experiment:
            groups.setdefault((experiment, *_kind(run)), []).append(run)
    outcomes = []
    for key, members in sorted(groups.items(), key=lambda item: item[0][0]):
        experiment, *kind = key
        finished, full = (
            [run for run in chosen if id(run) in ran] for chosen in (members, groups.get(("E3", *kind), []))
        )
        question, rule = _EXPERIMENTS[experiment]
        parts = list(rule(finished, full))
        outcomes.append(
            Outcome(
                experiment,
                question,
                members[0],
                min(epochs[names[id(run)]] for run in members),
                "; ".join(part.words for part in parts),
                "; ".join(part.found for part in parts) if finished else "",
                _verdict(parts) if finished else "not run",
            )
        )
    return outcomes


def _experiment(run: Run, epochs: int) -> str | None:
    """Return the experiment that a run belongs to, or None."""
    attack, ar = base_attack(run["train_attack"]), run["ar"]
    if run["paper"] == "tin" and ar == 0:
        return "E6"
    if run["paper"] != "c10" or paper_name(run["arch"]) != "resnet56" or run["spectral_norm"] is not None:
        return None
    if epochs < PAPER_EPOCHS:
        return "E2" if (attack, ar) == ("pgd", 16) and epochs >= SHORT_EPOCHS else None
    return "E1" if ar == 0 else {("pgd", 16): "E3", ("pgd", 4): "E4", ("fgsm", 16): "E5"}.get((attack, ar))


def _kind(run: Run) -> tuple[Any, ...]:
    """Return what networks share that differ in attack, strength and seed only."""
    return run["dataset"], run["arch"], clean_share(run["train_attack"]), run["space"]


def _verdict(parts: Sequence[_Part]) -> str:
    met = [part.met for part in parts]
    if not parts or all(part.words == "" for part in parts):
        return "measured"
    return "fails" if False in met else "not known" if None in met else "passes"


def _at_least(runs: Sequence[Run], metric: str, floor: float) -> _Part:
    words, unit = _METRICS[metric]
    found = mean_metric(runs, metric)
    return _Part(f"{words} at least {floor:g}{_spaced(unit)}", _number(found, unit), _met(found, floor, math.inf))


def _printed(runs: Sequence[Run], attack: str, ar: int) -> Iterator[_Part]:
    """Yield a condition for each number of the paper that has a tolerance."""
    for (of_attack, of_ar, metric), tolerance in TOLERANCES.items():
        if (of_attack, of_ar) == (attack, ar):
            value, (words, unit) = _paper_value(attack, ar, metric), _METRICS[metric]
            found = mean_metric(runs, metric)
            rule = f"{words} {value:g} ± {tolerance:g}{_spaced(unit)}"
            yield _Part(rule, _number(found, unit), _met(found, value - tolerance, value + tolerance))


def _paper_value(attack: str, ar: int, metric: str) -> float:
    frame = read_reference()
    key = {"dataset": "c10", "arch": "resnet56", "train_attack": attack, "ar": ar, "metric": metric}
    chosen = frame[frame["spectral_norm"].isna() & (frame[list(key)] == pd.Series(key)).all(axis=1)]
    return float(chosen["paper"].iloc[0])


def _network(runs: Sequence[Run], _full: Sequence[Run]) -> Iterator[_Part]:
    yield from (_at_least(runs, metric, floor) for metric, floor in FLOORS.items())


def _scale(runs: Sequence[Run], _full: Sequence[Run]) -> Iterator[_Part]:
    yield _at_least(runs, "train_acc", SHORT_TRAIN_ACC)


def _strong(runs: Sequence[Run], _full: Sequence[Run]) -> Iterator[_Part]:
    yield from _printed(runs, "pgd", 16)
    radius = radius_with(runs, SURVIVORS[16])
    words = f"PGD at some radius in pixels leaves {SURVIVORS[16]:g} % of what is correct"
    found = "no radius that was tried" if math.isnan(radius) else f"at {radius:.1f}/255"
    yield _Part(words, found, None if not runs else not math.isnan(radius))


def _weak(runs: Sequence[Run], full: Sequence[Run]) -> Iterator[_Part]:
    yield from _printed(runs, "pgd", 4)
    low, high = PGD_AR4
    radius = radius_with(full, SURVIVORS[16])
    left = accuracy_at(runs, radius)
    words = f"PGD at the radius of E3 leaves {low:g} to {high:g} %"
    yield _Part(words, "not known" if math.isnan(left) else f"{left:.1f} % at {radius:.1f}/255", _met(left, low, high))


def _fgsm(runs: Sequence[Run], full: Sequence[Run]) -> Iterator[_Part]:
    yield from _printed(runs, "fgsm", 16)
    own, other = mean_metric(runs, "train_loss"), mean_metric(full, "train_loss")
    yield _Part("training loss above that of PGD", _number(other, ""), None if math.isnan(other) else own > other)


def _nothing_left(runs: Sequence[Run], _full: Sequence[Run]) -> Iterator[_Part]:
    radius = radius_with(runs, _NOTHING)
    yield _Part("", "at no radius that was tried" if math.isnan(radius) else f"at {radius:.1f}/255", None)


def _met(found: float, low: float, high: float) -> bool | None:
    return None if math.isnan(found) else low <= found <= high


def _number(value: float, unit: str) -> str:
    return "not known" if math.isnan(value) else f"{value:.1f} %" if unit else f"{value:.3f}"


def _spaced(unit: str) -> str:
    return f" {unit}" if unit else ""


_EXPERIMENTS: dict[str, tuple[str, Callable[[Sequence[Run], Sequence[Run]], Iterator[_Part]]]] = {
    "E1": ("Which network can fit the training images? (AR 0)", _network),
    "E2": ("Which scale of perturbations, in a short training? (AR 16)", _scale),
    "E3": ("Does AR 16 have the paper's numbers?", _strong),
    "E4": ("Does AR 4 have them, with PGD at the same radius?", _weak),
    "E5": ("Does FGSM at AR 16 have them?", _fgsm),
    "E6": ("At which radius in pixels does PGD leave nothing of a network for Tiny-ImageNet? (AR 0)", _nothing_left),
}
