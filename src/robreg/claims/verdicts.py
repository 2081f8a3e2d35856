"""Judge every claim of the paper by the runs of a study: an effect, its 95 % interval and a verdict."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from robreg.claims.claim import EXTENSION, NOT_RUN, Claim, Kind, Place
from robreg.claims.contrasts import AtStrength, Networks, Outcome, weaker
from robreg.claims.estimates import Estimate
from robreg.claims.quantities import Network
from robreg.claims.registry import CLAIMS
from robreg.runs.catalogue import Run
from robreg.runs.groups import group_by_setting
from robreg.tables import files
from robreg.tables.parquet import write_frame

_WHERE = ("dataset", "arch", "train_attack", "space", "spectral_norm")
_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int64()
SCHEMA = pa.schema(
    [(key, _TEXT) for key in ("id", "claim", "source", "dataset", "arch", "train_attack", "space")]
    + [("spectral_norm", _REAL), ("ar_low", _WHOLE), ("ar_high", _WHOLE), ("statistic", _TEXT)]
    + [(key, _REAL) for key in ("at_low", "at_high", "effect", "ci_low", "ci_high")]
    + [("ci_over", _TEXT), ("n_seeds", _WHOLE), ("verdict", _TEXT)]
)
_PAPER_NETWORKS: dict[str, dict[str, str]] = {  # by kind and data set
    "plain": {"c10": "resnet56", "c100": "resnet56", "tin": "wrn50"},
    "deeper": {"c10": "resnet110", "c100": "resnet110"},
    "FGSM": {"c10": "resnet56", "c100": "resnet56"},
    "bounded": {"c10": "resnet56"},
}
_PAPER_BOUNDS = (1.0, 3.0, 5.0)


@dataclass(frozen=True)
class ClaimSetting:
    """A setting: what its networks, of several strengths and seeds, share. paper: the data set that theirs stands for.

    kind: the paper's kind of networks; None for one that it does not show.
    """

    dataset: str
    arch: str
    train_attack: str
    space: str | None
    spectral_norm: float | None
    paper: str | None
    kind: Kind | None
    networks: Networks

    @property
    def where(self) -> dict[str, Any]:
        """Its columns in a table."""
        return {key: getattr(self, key) for key in _WHERE}


def record(runs: Sequence[Run], *, compare: Sequence[int], study: str, parquet: Path, csv: Path) -> None:
    """Write the claims of a study: one row per claim and setting.

    runs: as config.study_runs gives them; compare: the two strengths (1/255) between which a change is judged.
    """
    low, high = compare
    found = pa.Table.from_pylist(list(judge_all(claim_settings(runs), low, high)), SCHEMA)
    write_frame(parquet, found, {"study": study})
    with files.atomic_write(csv) as temporary:
        frame = found.to_pandas(types_mapper={_WHOLE: pd.Int64Dtype()}.get)
        frame.to_csv(temporary, index=False)


def claim_settings(runs: Sequence[Run]) -> list[ClaimSetting]:
    """Group runs into settings; standard training (AR 0) belongs to that of every attack."""
    found = []
    for members in group_by_setting(runs).values():
        first = max(members, key=lambda run: run["ar"] > 0)  # only a trained one knows the attack
        networks: dict[int, dict[int, Network]] = {}
        for run in members:
            networks.setdefault(run["ar"], {})[run["seed"]] = Network(run["dataset"], Path(run["folder"]))
        found.append(
            ClaimSetting(
                **{key: first[key] for key in _WHERE}, paper=first["paper"], kind=_kind(first), networks=networks
            )
        )
    return found


def judge_all(every: Sequence[ClaimSetting], low: int, high: int) -> Iterator[dict[str, Any]]:
    """Make one row of every claim in every setting that it speaks of, or could; and of those that were not run.

    A setting without the strengths is not run. Beyond what the paper shows, a general claim is judged as an extension
    wherever that is possible.
    """
    for claim in CLAIMS:
        for setting in every:
            if _repeated(claim, setting, every, low, high):
                continue
            source = _source(claim, setting)
            outcome = None if source is None else _measure(claim, setting, every, low, high)
            if source is not None and (outcome or source != EXTENSION or not claim.places):
                yield _row(claim, source, setting, outcome, low, high)
        for place, setting in _missing(claim, every):
            yield _row(claim, place.source, setting, None, low, high)


def verdict(estimate: Estimate, sign: int) -> str:
    """Say whether the 95 % interval excludes 0 in the claimed direction (holds), in the other (fails), or not."""
    ends = [sign * end for end in estimate.interval()]
    if min(ends) > 0:
        return "holds"
    return "fails" if max(ends) < 0 else "undecided"


def _kind(run: Run) -> Kind | None:
    """The paper's kind of networks that a run belongs to."""
    usual = run["arch"] == run["default_arch"]
    kinds: dict[tuple[bool, bool, bool], Kind] = {
        (True, False, False): "plain",
        (True, True, False): "FGSM",
        (True, False, True): "bounded",
    }
    key = (usual, run["train_attack"] == "fgsm", run["spectral_norm"] is not None)
    deeper = run["arch"] == "resnet110" and key == (False, False, False)
    return "deeper" if deeper else kinds.get(key)


def _source(claim: Claim, setting: ClaimSetting) -> str | None:
    """Where the paper makes a claim of such a setting; EXTENSION if only we do, None if it says nothing of it."""
    for place in claim.places:
        fits = place.kind == setting.kind and place.bound in (None, setting.spectral_norm)
        known = claim.general if setting.paper is None else setting.paper in place.datasets
        if fits and known:
            return place.source
    return EXTENSION if claim.general else None


def _repeated(claim: Claim, setting: ClaimSetting, every: Sequence[ClaimSetting], low: int, high: int) -> bool:
    """Whether a claim speaks of standard networks only, and is judged by them in PGD's setting, too."""
    if (
        not isinstance(claim.contrast, AtStrength)
        or claim.contrast.strength(low, high)
        or setting.train_attack == "pgd"
    ):
        return False
    return any(other.where == {**setting.where, "train_attack": "pgd"} for other in every)


def _measure(claim: Claim, setting: ClaimSetting, every: Sequence[ClaimSetting], low: int, high: int) -> Outcome | None:
    outcome = claim.contrast(setting.networks, low, high)
    if claim.against is None or outcome is None:
        return outcome
    other = _partner(claim, setting, every)
    against = None if other is None else claim.contrast(other.networks, low, high)
    if against is None:
        return None
    return weaker(against, -outcome) if claim.against == "no bound" else outcome - against


def _partner(claim: Claim, setting: ClaimSetting, every: Sequence[ClaimSetting]) -> ClaimSetting | None:
    """The setting that a claim compares this one with: like it but for the data set, or for the bound."""
    wanted = {**setting.where, "spectral_norm": None}
    if claim.against == "no bound":
        return next((other for other in every if other.where == wanted), None)
    alike = [other for other in every if other.where == {**wanted, "dataset": other.dataset}]
    return next((other for other in alike if other.paper == claim.against), None)


def _row(
    claim: Claim, source: str, setting: ClaimSetting, outcome: Outcome | None, low: int, high: int
) -> dict[str, Any]:
    row = {"id": claim.id, "claim": claim.text, "source": source, **setting.where, "ar_low": low, "ar_high": high}
    row |= {"statistic": claim.contrast.text(low, high), "verdict": NOT_RUN}
    if outcome is None:
        return row
    ends = outcome.estimate.interval()
    values = {"at_low": outcome.at_low, "at_high": outcome.at_high, "effect": outcome.estimate.value}
    values |= {"ci_low": ends[0], "ci_high": ends[1]}
    row |= {key: None if math.isnan(value) else value for key, value in values.items()}
    return row | {
        "ci_over": outcome.estimate.over,
        "n_seeds": outcome.n_seeds,
        "verdict": verdict(outcome.estimate, claim.sign),
    }


def _missing(claim: Claim, every: Sequence[ClaimSetting]) -> Iterator[tuple[Place, ClaimSetting]]:
    """The paper's settings of a claim that the study has no run of, unless it has another data set's instead."""
    for place in claim.places:
        like = [setting for setting in every if setting.kind == place.kind]
        if claim.general and any(setting.paper is None for setting in like):
            continue
        bounds = _PAPER_BOUNDS if place.kind == "bounded" else (None,)
        for dataset in place.datasets:
            for bound in bounds if place.bound is None else (place.bound,):
                setting = _paper_setting(place.kind, dataset, bound)
                if not any(_stands_for(other, setting) for other in like):
                    yield place, setting


def _paper_setting(kind: Kind, dataset: str, bound: float | None) -> ClaimSetting:
    arch, attack = _PAPER_NETWORKS[kind][dataset], "fgsm" if kind == "FGSM" else "pgd"
    return ClaimSetting(dataset, arch, attack, None, bound, dataset, kind, {})


def _stands_for(setting: ClaimSetting, paper: ClaimSetting) -> bool:
    return (setting.paper, setting.spectral_norm) == (paper.paper, paper.spectral_norm)
