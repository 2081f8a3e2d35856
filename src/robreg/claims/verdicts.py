"""Judge every claim of the paper by the runs of a study, with an effect, its 95 % interval and a verdict.

Several seeds decide whether a claim holds. One seed shows what these networks do, and nothing of another training, so
its verdicts have words of their own.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from robreg.claims.claim import EXTENSION, NOT_RUN, ONE_SEED, SEVERAL_SEEDS, Claim, Kind, Place
from robreg.claims.contrasts import AtStrength, Networks, Outcome, Step, weaker_outcome
from robreg.claims.quantities import Network
from robreg.claims.registry import CLAIMS
from robreg.claims.uncertainty import Effect, q_values
from robreg.runs.catalogue import Run
from robreg.runs.groups import group_by_setting
from robreg.runs.variant import base_attack, paper_name
from robreg.tables import files
from robreg.tables.parquet import write_frame

_SETTING_COLUMNS = ("dataset", "arch", "train_attack", "space", "spectral_norm")
_STRING, _FLOAT, _INTEGER = pa.string(), pa.float64(), pa.int64()
SCHEMA = pa.schema(
    [(key, _STRING) for key in ("id", "claim", "source", "dataset", "arch", "train_attack", "space")]
    + [("spectral_norm", _FLOAT), ("ar_low", _INTEGER), ("ar_high", _INTEGER), ("strengths", _STRING)]
    + [("statistic", _STRING)]
    + [(key, _FLOAT) for key in ("at_low", "at_high", "effect", "ci_low", "ci_high")]
    + [("ci_over", _STRING), ("n_seeds", _INTEGER)]
    + [(key, _FLOAT) for key in ("se_seeds", "se_images", "smallest_effect", "p", "q")]
    + [(key, _FLOAT) for key in ("ends_effect", "ends_ci_low", "ends_ci_high")]
    + [("other_way", _STRING), ("verdict", _STRING)]
)
_PAPER_NETWORKS: dict[str, dict[str, str]] = {  # architecture, by kind and data set
    "plain": {"c10": "resnet56", "c100": "resnet56", "tin": "wrn50"},
    "deeper": {"c10": "resnet110", "c100": "resnet110"},
    "FGSM": {"c10": "resnet56", "c100": "resnet56"},
    "bounded": {"c10": "resnet56"},
}
_PAPER_BOUNDS = (1.0, 3.0, 5.0)  # on the spectral norm


@dataclass(frozen=True)
class ClaimSetting:
    """A setting: what networks of several strengths and seeds have in common.

    paper: the paper's data set that this data set stands for, None if there is none; kind: the paper's kind of
    networks, None for a kind that the paper does not show; networks: by strength and seed.
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
        """Return the columns that identify the setting in a table."""
        return {key: getattr(self, key) for key in _SETTING_COLUMNS}


def record(runs: Sequence[Run], *, compare: Sequence[int], study: str, parquet: Path, csv: Path) -> None:
    """Write the claims of a study: one row per claim and setting.

    runs: as config.study_runs gives them; compare: the two strengths (1/255) from and to which a change is judged.
    """
    low, high = compare
    table = pa.Table.from_pylist(judge_all(claim_settings(runs), low, high), SCHEMA)
    write_frame(parquet, table, {"study": study})
    with files.atomic_write(csv) as file:
        frame = table.to_pandas(types_mapper={_INTEGER: pd.Int64Dtype()}.get)
        frame.to_csv(file, index=False)


def claim_settings(runs: Sequence[Run]) -> list[ClaimSetting]:
    """Group runs into settings; standard training (AR 0) belongs to the setting of every attack."""
    settings = []
    for members in group_by_setting(runs).values():
        first = max(members, key=lambda run: run["ar"] > 0)  # prefer a run that was trained with an attack
        networks: dict[int, dict[int, Network]] = {}
        for run in members:
            networks.setdefault(run["ar"], {})[run["seed"]] = Network(run["dataset"], Path(run["folder"]))
        settings.append(
            ClaimSetting(
                **{key: first[key] for key in _SETTING_COLUMNS},
                paper=first["paper"],
                kind=_paper_kind(first),
                networks=networks,
            )
        )
    return settings


def judge_all(every: Sequence[ClaimSetting], low: int, high: int) -> list[dict[str, Any]]:
    """Return one row for every claim in every setting that it is about, and for the paper's settings that were not run.

    A setting without the two strengths counts as not run. In settings that the paper does not show, a general claim is
    judged as an extension wherever that is possible. The columns p and q: the two-sided p of the effect, and Benjamini
    and Hochberg's q among the claims that several seeds decide, or among those that one seed shows.
    """
    rows = list(_judge_each(every, low, high))
    for several in (True, False):
        family = [row for row in rows if row.get("p") is not None and (row["n_seeds"] > 1) == several]
        for row, q in zip(family, q_values([row["p"] for row in family]), strict=True):
            row["q"] = q
    return rows


def _judge_each(every: Sequence[ClaimSetting], low: int, high: int) -> Iterator[dict[str, Any]]:
    for claim in CLAIMS:
        for setting in every:
            if _is_judged_with_pgd(claim, setting, every, low, high):
                continue
            source = _source_of(claim, setting)
            outcome = None if source is None else _compute_outcome(claim, setting, every, low, high)
            if source is not None and (outcome or source != EXTENSION or not claim.places):
                yield _table_row(claim, source, setting, outcome, low, high)
        for place, setting in _settings_not_run(claim, every):
            yield _table_row(claim, place.source, setting, None, low, high)


def verdict(effect: Effect, sign: int) -> str:
    """Return the verdict on a claim that the effect has this sign.

    With several seeds: "holds" if the 95 % interval excludes 0 in the claimed direction, "fails" if in the other one,
    otherwise "undecided". With one seed: "seen", "not seen" and "not clear", from the interval over test images. If one
    seed's effect does not depend on images, it is known exactly, and its sign decides.
    """
    yes, no, open_ = SEVERAL_SEEDS if effect.n_seeds > 1 else ONE_SEED
    exact = effect.n_seeds == 1 and not effect.images
    ends = [sign * end for end in ((effect.value, effect.value) if exact else effect.interval())]
    if min(ends) > 0:
        return yes
    return no if max(ends) < 0 else open_


def _paper_kind(run: Run) -> Kind | None:
    """Return the paper's kind of networks that a run belongs to, or None if the paper does not show its kind."""
    if run["train_attack"] != base_attack(run["train_attack"]):
        return None
    usual = paper_name(run["arch"]) == paper_name(run["default_arch"])
    kinds: dict[tuple[bool, bool, bool], Kind] = {
        (True, False, False): "plain",
        (True, True, False): "FGSM",
        (True, False, True): "bounded",
    }
    key = (usual, run["train_attack"] == "fgsm", run["spectral_norm"] is not None)
    deeper = paper_name(run["arch"]) == "resnet110" and key == (False, False, False)
    return "deeper" if deeper else kinds.get(key)


def _source_of(claim: Claim, setting: ClaimSetting) -> str | None:
    """Return where the paper makes a claim about such a setting.

    Returns EXTENSION if only this package makes it, None if the claim is not about such a setting.
    """
    for place in claim.places:
        fits = place.kind == setting.kind and place.bound in (None, setting.spectral_norm)
        known = claim.general if setting.paper is None else setting.paper in place.datasets
        if fits and known:
            return place.source
    return EXTENSION if claim.general else None


def _is_judged_with_pgd(
    claim: Claim, setting: ClaimSetting, every: Sequence[ClaimSetting], low: int, high: int
) -> bool:
    """Return whether a claim is only about standard networks and is already judged by them in the setting of PGD."""
    if (
        not isinstance(claim.contrast, AtStrength)
        or claim.contrast.strength(low, high)
        or setting.train_attack == "pgd"
    ):
        return False
    return any(other.where == {**setting.where, "train_attack": "pgd"} for other in every)


def _compute_outcome(
    claim: Claim, setting: ClaimSetting, every: Sequence[ClaimSetting], low: int, high: int
) -> Outcome | None:
    outcome = claim.contrast(setting.networks, low, high)
    if claim.against is None or outcome is None:
        return outcome
    other = _find_partner(claim, setting, every)
    against = None if other is None else claim.contrast(other.networks, low, high)
    if against is None:
        return None
    return weaker_outcome(against, -outcome) if claim.against == "no bound" else outcome - against


def _find_partner(claim: Claim, setting: ClaimSetting, every: Sequence[ClaimSetting]) -> ClaimSetting | None:
    """Return the setting that a claim compares this one with: one that differs only in the data set or the bound."""
    wanted = {**setting.where, "spectral_norm": None}
    if claim.against == "no bound":
        return next((other for other in every if other.where == wanted), None)
    alike = [other for other in every if other.where == {**wanted, "dataset": other.dataset}]
    return next((other for other in alike if other.paper == claim.against), None)


def _table_row(
    claim: Claim, source: str, setting: ClaimSetting, outcome: Outcome | None, low: int, high: int
) -> dict[str, Any]:
    row = {"id": claim.id, "claim": claim.text, "source": source, **setting.where, "ar_low": low, "ar_high": high}
    row |= {"statistic": claim.contrast.text(low, high), "verdict": NOT_RUN}
    if outcome is None:
        return row
    effect, ends = outcome.effect, outcome.ends
    low_end, high_end = effect.interval()
    numbers = {"at_low": outcome.at_low, "at_high": outcome.at_high, "effect": effect.value}
    numbers |= {"ci_low": low_end, "ci_high": high_end, "se_seeds": effect.se_seeds, "se_images": effect.se_images}
    numbers |= {"smallest_effect": effect.margin(), "p": effect.p_value()}
    if ends is not None:
        numbers |= dict(
            zip(("ends_effect", "ends_ci_low", "ends_ci_high"), (ends.value, *ends.interval()), strict=True)
        )
    row |= {key: None if math.isnan(value) else value for key, value in numbers.items()}
    return row | {
        "strengths": ", ".join(map(str, outcome.strengths)),
        "ci_over": effect.over,
        "n_seeds": effect.n_seeds,
        "other_way": ", ".join(map(_step_text, outcome.reversed_steps)) or None,
        "verdict": verdict(effect, claim.sign),
    }


def _step_text(step: Step) -> str:
    low, high = step.effect.interval()
    return f"AR {step.low} to {step.high}" + (" (its interval excludes 0)" if low * high > 0 else "")


def _settings_not_run(claim: Claim, every: Sequence[ClaimSetting]) -> Iterator[tuple[Place, ClaimSetting]]:
    """Yield the paper's settings of a claim that have no run in the study.

    A general claim has none if the study has runs of the same kind on a data set that the paper does not have.
    """
    for place in claim.places:
        same_kind = [setting for setting in every if setting.kind == place.kind]
        if claim.general and any(setting.paper is None for setting in same_kind):
            continue
        bounds = _PAPER_BOUNDS if place.kind == "bounded" else (None,)
        for dataset in place.datasets:
            for bound in bounds if place.bound is None else (place.bound,):
                setting = _paper_setting(place.kind, dataset, bound)
                if not any(_stands_for(other, setting) for other in same_kind):
                    yield place, setting


def _paper_setting(kind: Kind, dataset: str, bound: float | None) -> ClaimSetting:
    arch, attack = _PAPER_NETWORKS[kind][dataset], "fgsm" if kind == "FGSM" else "pgd"
    return ClaimSetting(dataset, arch, attack, None, bound, dataset, kind, {})


def _stands_for(setting: ClaimSetting, paper: ClaimSetting) -> bool:
    return (setting.paper, setting.spectral_norm) == (paper.paper, paper.spectral_norm)
