"""Prepare the claims and their verdicts for the report: grouped by topic, with those not tested listed separately."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robreg.claims.claim import EXTENSION, NOT_RUN, ONE_SEED, SEVERAL_SEEDS
from robreg.runs.catalogue import Run
from robreg.runs.variant import base_attack, describe_setting, paper_name

VERDICTS = {
    "holds": "several seeds: the 95 % interval of the effect excludes 0 in the claimed direction",
    "fails": "several seeds: the interval excludes 0 in the opposite direction",
    "undecided": "several seeds: the interval contains 0, or there is no interval",
    "seen": "one seed: these networks show the claimed effect; nothing is known of another training",
    "not seen": "one seed: these networks show the opposite effect",
    "not clear": "one seed: these networks do not show either",
}
SECOND_STRENGTH = "needs a second strength"  # of a claim about a change, for a setting that lacks one of its two ends
REASONS = {  # why claims could not be tested, as the heading of a list
    SECOND_STRENGTH: "Not tested, because these settings lack one of the two compared strengths",
    NOT_RUN: "Not run, because this study has no such networks",
}
_PLACE = ("dataset", "arch", "space", "spectral_norm")
_TOPICS = (  # in the paper's order: title of the group, prefixes of its claims' ids
    ("Margins and confidence", ("margin", "prob")),
    ("Spectra of the layers", ("svstd",)),
    ("Loss variation", ("loss-variation",)),
)
_ORDER = (
    "Generalisation",
    *(title for title, _ in _TOPICS),
    "FGSM training",
    "ResNet-110",
    "Bound on the spectral norm",
    "Extensions",  # claims beyond those of the paper
)


@dataclass(frozen=True)
class SettingView:
    """One claim in one setting, as text: the setting, the verdict, and the effect on which the verdict is based.

    ends: the quantity at the two compared strengths, "" if there are no such values; over: what the interval is taken
    over; q: the false discovery rate; errors: the standard errors due to seeds and to images; notes: sentences about
    single strengths and about what could have been decided; statistic: what the effect is, "" if the claim has the same
    in all settings.
    """

    setting: str
    verdict: str
    ends: str
    effect: str
    interval: str
    over: str
    n_seeds: str
    q: str
    errors: tuple[str, ...]
    notes: tuple[str, ...]
    statistic: str


@dataclass(frozen=True)
class ClaimView:
    """One claim.

    statistic: what the effect is, "" if this differs between settings; judged: the settings in which the claim was
    tested.
    """

    text: str
    source: str
    statistic: str
    judged: tuple[SettingView, ...]


@dataclass(frozen=True)
class UntestedClaim:
    """A claim, and the settings that could not test it."""

    text: str
    source: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class GroupView:
    """Claims about one topic. anchor: its id in the page; counts: of each verdict, over claims and their settings."""

    title: str
    anchor: str
    claims: tuple[ClaimView, ...]
    counts: Mapping[str, int]

    @property
    def judged(self) -> list[ClaimView]:
        """Claims that were tested in at least one setting."""
        return [claim for claim in self.claims if claim.judged]


def group_claims(frame: pd.DataFrame, runs: Sequence[Run]) -> list[GroupView]:
    """Group the rows of claims.parquet (one row per claim and setting) by topic; unknown columns are ignored.

    runs: of the study.
    """
    members: dict[str, list[dict[str, Any]]] = {}
    for row in with_reasons(to_rows(frame), runs):
        members.setdefault(_topic(row), []).append(row)
    known = [title for title in _ORDER if title in members]
    titles = [*known, *(title for title in members if title not in known)]
    return [
        GroupView(title, f"claims-{index}", _claim_views(members[title]), count_verdicts(members[title]))
        for index, title in enumerate(titles, 1)
    ]


def untested_claims(frame: pd.DataFrame, runs: Sequence[Run]) -> dict[str, list[UntestedClaim]]:
    """List the claims that some settings could not test, each once, by the reasons NOT_RUN and SECOND_STRENGTH."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {reason: {} for reason in REASONS}
    for row in with_reasons(to_rows(frame), runs):
        if row["verdict"] in found:
            found[row["verdict"]].setdefault(row["id"], []).append(row)
    return {reason: [_untested(rows) for rows in claims.values()] for reason, claims in found.items()}


def _untested(rows: Sequence[Mapping[str, Any]]) -> UntestedClaim:
    sources = dict.fromkeys(row["source"] for row in rows)
    return UntestedClaim(rows[0]["claim"], "; ".join(sources), tuple(map(setting_name, rows)))


def count_verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count each verdict of settings that were tested. Raises ValueError for a verdict that is not known."""
    verdicts = [row["verdict"] for row in rows]
    unknown = sorted(set(map(str, verdicts)) - VERDICTS.keys() - {NOT_RUN, SECOND_STRENGTH})
    if unknown:
        raise ValueError(
            f"claims: unknown verdict {', '.join(unknown)}; a verdict must be one of {', '.join(VERDICTS)}"
        )
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def with_reasons(rows: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return rows in which SECOND_STRENGTH replaces NOT_RUN where the study has a network, but only of one end."""
    return [{**row, "verdict": _reason(row, runs) if row["verdict"] == NOT_RUN else row["verdict"]} for row in rows]


def _reason(row: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """Say why a setting could not test a claim; standard training (AR 0) belongs to the setting of every attack."""
    place = [row.get(key) for key in _PLACE]
    own = [run for run in runs if [run[key] for key in _PLACE] == place]
    trained = {run["ar"] for run in own if run["ar"] == 0 or run["train_attack"] == row.get("train_attack")}
    ends = {row.get("ar_low"), row.get("ar_high")}
    return SECOND_STRENGTH if trained - {0} and not ends <= trained else NOT_RUN


def setting_name(row: Mapping[str, Any]) -> str:
    """Name the setting of a row, such as "digits, resnet8, FGSM"; missing, null and default values are left out."""
    words = describe_setting(row.get("train_attack"), row.get("spectral_norm"), row.get("space"))
    parts = [row.get("dataset"), row.get("arch"), *words]
    return ", ".join(str(part) for part in parts if part) or "any"


def to_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a frame to a list of rows, with None for missing values."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _topic(row: Mapping[str, Any]) -> str:
    """Return the title of a claim's group, which follows from its setting or, failing that, from its id."""
    special = {
        "Extensions": row["source"] == EXTENSION,
        "Bound on the spectral norm": row.get("spectral_norm") is not None,
        "FGSM training": base_attack(row.get("train_attack") or "pgd") == "fgsm",
        "ResNet-110": paper_name(row.get("arch") or "") == "resnet110",
    }
    by_setting = [title for title, fits in special.items() if fits]
    by_id = [title for title, prefixes in _TOPICS if row["id"].startswith(prefixes)]
    return next(iter(by_setting + by_id), "Generalisation")


def _claim_views(rows: Sequence[Mapping[str, Any]]) -> tuple[ClaimView, ...]:
    """Make one view of each claim from the rows of a group."""
    claims: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        claims.setdefault(row["id"], []).append(row)
    return tuple(map(_claim_view, claims.values()))


def _claim_view(rows: Sequence[Mapping[str, Any]]) -> ClaimView:
    """Make the view of one claim from its rows, one per setting."""
    statistics, untested = {row["statistic"] for row in rows}, (NOT_RUN, SECOND_STRENGTH)
    common = statistics.pop() if len(statistics) == 1 else ""
    return ClaimView(
        text=rows[0]["claim"],
        source="; ".join(dict.fromkeys(row["source"] for row in rows)),
        statistic=common or "",
        judged=tuple(_setting_view(row, common) for row in rows if row["verdict"] not in untested),
    )


def _setting_view(row: Mapping[str, Any], common: str | None) -> SettingView:
    """Make the view of a tested setting. common: the statistic that all settings of the claim share, if they do."""
    effect, low, high = (row[key] for key in ("effect", "ci_low", "ci_high"))
    known = None not in (effect, low, high)
    decimals = _decimals(high - low if known and high > low else effect)
    if known and low * high > 0:  # rounding must not make an interval that excludes 0 include it
        decimals = max(decimals, _decimals(min(abs(low), abs(high))) - 1)
    ends = [row.get(key) for key in ("at_low", "at_high")]
    return SettingView(
        setting=setting_name(row),
        verdict=row["verdict"],
        ends="" if None in ends else " → ".join(_number(end, decimals) for end in ends),
        effect=_number(effect, decimals),
        interval=f"{_number(low, decimals)} to {_number(high, decimals)}" if known else "",
        over=row["ci_over"] or "",
        n_seeds=f"{row['n_seeds']:g}" if row["n_seeds"] is not None else "",
        q="" if row.get("q") is None else "< 0.001" if row["q"] < 0.001 else f"{row['q']:.3f}",
        errors=tuple(
            f"{name} {_number(row[key], decimals + 1)}"
            for name, key in (("seeds", "se_seeds"), ("images", "se_images"))
            if row.get(key) is not None
        ),
        notes=tuple(_notes(row, decimals)),
        statistic="" if common else row["statistic"] or "",
    )


def _notes(row: Mapping[str, Any], decimals: int) -> Iterator[str]:
    """Say which steps go the other way, what the two ends alone give, and which effect would have been decided."""
    if row.get("other_way"):
        yield f"The other way: {row['other_way']}."
    strengths = (row.get("strengths") or "").split(", ")
    if len(strengths) > 1:
        yield f"Strengths: AR {', '.join(strengths)}."
    if row.get("ends_effect") is not None and len(strengths) > 2:
        effect, low, high = (row[f"ends_{key}"] for key in ("effect", "ci_low", "ci_high"))
        interval = "" if None in (low, high) else f" ({_number(low, decimals)} to {_number(high, decimals)})"
        yield f"The two ends alone: {_number(effect, decimals)}{interval}."
    if row["verdict"] in (SEVERAL_SEEDS[2], ONE_SEED[2]) and row.get("smallest_effect") is not None:
        word = "decided" if row["verdict"] == SEVERAL_SEEDS[2] else "clear"
        yield f"An observed effect larger than ±{_number(row['smallest_effect'], decimals)} would have been {word}."


def _decimals(width: float | None) -> int:
    """Return the number of decimals that show two digits of an interval's width."""
    if width is None or width == 0 or not math.isfinite(width):
        return 3
    return min(8, max(0, 1 - math.floor(math.log10(abs(width)))))


def _number(value: float | None, decimals: int) -> str:
    """Format a number with a real minus sign; None becomes a dash."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:z.{decimals}f}".replace("-", "\N{MINUS SIGN}")  # z: no minus sign for values that round to 0
