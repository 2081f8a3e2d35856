"""The claims and their verdicts as the report shows them: in groups, with what was not run set apart, and counted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robreg.claims.claim import EXTENSION, NOT_RUN

VERDICTS = {
    "holds": "the 95 % interval of the effect excludes 0 in the claimed direction",
    "fails": "it excludes 0 in the other direction",
    "undecided": "it contains 0, or there is none",
    NOT_RUN: "the study has no networks for it",
}
_SAID = {  # of one, and of several
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    "undecided": ("is undecided", "are undecided"),
    NOT_RUN: ("was not run", "were not run"),
}
_BEYOND = "Beyond the paper (our own claims, and its claims on networks that it does not show)"
_TOPICS = (  # titles of groups in the paper's order, and how the ids of their claims begin
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
    "Extensions",  # beyond what the paper shows
)


@dataclass(frozen=True)
class SettingView:
    """One claim in one setting: where it was tested, its verdict, and the effect that decided it, as text.

    ends: the quantity at the two strengths that are compared, "" where there are none.
    """

    setting: str
    verdict: str
    ends: str
    effect: str
    interval: str
    over: str
    n_seeds: str
    statistic: str


@dataclass(frozen=True)
class ClaimView:
    """One claim. statistic: what the effect is, "" where its settings differ in it; unrun: settings not run."""

    text: str
    source: str
    statistic: str
    judged: tuple[SettingView, ...]
    unrun: tuple[str, ...]


@dataclass(frozen=True)
class GroupView:
    """Claims about one thing. anchor: its place in the page; counts: of every verdict."""

    title: str
    anchor: str
    claims: tuple[ClaimView, ...]
    counts: Mapping[str, int]

    @property
    def judged(self) -> list[ClaimView]:
        """Those that were tested in some setting."""
        return [claim for claim in self.claims if claim.judged]

    @property
    def unrun(self) -> list[ClaimView]:
        """Those that some setting was not run for."""
        return [claim for claim in self.claims if claim.unrun]


def grouped(frame: pd.DataFrame) -> list[GroupView]:
    """Put claims.parquet (one row per claim and setting; columns that are not known are ignored) into groups."""
    rows = plain(frame)
    members: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        members.setdefault(_topic(row), []).append(row)
    known = [title for title in _ORDER if title in members]
    titles = [*known, *(title for title in members if title not in known)]
    return [
        GroupView(title, f"claims-{index}", _claims(members[title]), counts(members[title]))
        for index, title in enumerate(titles, 1)
    ]


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count every verdict. Raises ValueError for one that the contract does not know."""
    found = [row["verdict"] for row in rows]
    odd = sorted(set(map(str, found)) - VERDICTS.keys())
    if odd:
        raise ValueError(f"claims: unknown verdict {', '.join(odd)}; known: {', '.join(VERDICTS)}")
    return {verdict: found.count(verdict) for verdict in VERDICTS}


def headline(frame: pd.DataFrame) -> list[str]:
    """Sum all claims up in sentences: where the paper makes them, and beyond it; then the claims that fail, by name."""
    rows = plain(frame)
    beyond = [row for row in rows if row["source"] == EXTENSION]
    number, told = _sum([row for row in rows if row["source"] != EXTENSION])
    said = [f"Of {number} of the paper, {told}"]
    if beyond:
        number, told = _sum(beyond)
        said.append(f"{_BEYOND}: of {number}, {told}")
    failed: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "fails":
            failed.setdefault(row["claim"].rstrip("."), []).append(place(row))
    if failed:
        said.append(
            "What fails: " + "; ".join(f"{text} ({'; '.join(places)})" for text, places in failed.items()) + "."
        )
    return said


def place(row: Mapping[str, Any]) -> str:
    """Write a setting in words; a key that the row lacks, or that is null or the default, is left out."""
    parts = [row.get("dataset"), row.get("arch")]
    parts += ["FGSM"] if row.get("train_attack") == "fgsm" else []
    parts += [] if row.get("spectral_norm") is None else [f"spectral norm ≤ {row['spectral_norm']:g}"]
    parts += ["normalised space"] if row.get("space") == "normalised" else []
    return ", ".join(str(part) for part in parts if part) or "any"


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn a frame into rows with None for what is missing."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _sum(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Count claims and verdicts: "12 claims" and "8 were tested. Counted in every setting: 15 hold, ..."."""
    number = counts(rows)
    ran = [row["id"] for row in rows if row["verdict"] != NOT_RUN]
    claims = len({row["id"] for row in rows})
    head = f"{claims} claim{'s' if claims != 1 else ''}"
    if not ran:
        return head, "none was tested here."
    told = ", ".join(f"{number[key]} {_SAID[key][number[key] != 1]}" for key in _SAID if number[key] or key != NOT_RUN)
    tested = len(set(ran))
    return head, f"{tested} {'was' if tested == 1 else 'were'} tested. Counted in every setting: {told}."


def _topic(row: Mapping[str, Any]) -> str:
    """The group of a claim: from its setting, otherwise from its id."""
    special = {
        "Extensions": row["source"] == EXTENSION,
        "Bound on the spectral norm": row.get("spectral_norm") is not None,
        "FGSM training": row.get("train_attack") == "fgsm",
        "ResNet-110": row.get("arch") == "resnet110",
    }
    by_setting = [title for title, fits in special.items() if fits]
    by_words = [title for title, words in _TOPICS if row["id"].startswith(words)]
    return next(iter(by_setting + by_words), "Generalisation")


def _claims(rows: Sequence[Mapping[str, Any]]) -> tuple[ClaimView, ...]:
    claims: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        claims.setdefault(row["id"], []).append(row)
    return tuple(map(_claim, claims.values()))


def _claim(rows: Sequence[Mapping[str, Any]]) -> ClaimView:
    statistics = {row["statistic"] for row in rows}
    common = statistics.pop() if len(statistics) == 1 else ""
    return ClaimView(
        text=rows[0]["claim"],
        source="; ".join(dict.fromkeys(row["source"] for row in rows)),
        statistic=common or "",
        judged=tuple(_judged(row, common) for row in rows if row["verdict"] != NOT_RUN),
        unrun=tuple(place(row) for row in rows if row["verdict"] == NOT_RUN),
    )


def _judged(row: Mapping[str, Any], common: str | None) -> SettingView:
    effect, low, high = (row[key] for key in ("effect", "ci_low", "ci_high"))
    known = None not in (effect, low, high)
    decimals = _decimals(high - low if known and high > low else effect)
    if known and low * high > 0:  # an interval without 0 must look like one
        decimals = max(decimals, _decimals(min(abs(low), abs(high))) - 1)
    ends = [row.get(key) for key in ("at_low", "at_high")]
    return SettingView(
        setting=place(row),
        verdict=row["verdict"],
        ends="" if None in ends else " → ".join(_number(end, decimals) for end in ends),
        effect=_number(effect, decimals),
        interval=f"{_number(low, decimals)} to {_number(high, decimals)}" if known else "",
        over=row["ci_over"] or "",
        n_seeds=f"{row['n_seeds']:g}" if row["n_seeds"] is not None else "",
        statistic="" if common else row["statistic"] or "",
    )


def _decimals(width: float | None) -> int:
    """As many as show two digits of an interval's width."""
    if width is None or width == 0 or not math.isfinite(width):
        return 3
    return min(8, max(0, 1 - math.floor(math.log10(abs(width)))))


def _number(value: float | None, decimals: int) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:z.{decimals}f}".replace("-", "\N{MINUS SIGN}")  # z: no minus before what is rounded to 0
