"""Prepare the claims and their verdicts for the report: grouped, counted, and with claims not run listed separately."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robreg.claims.claim import EXTENSION, FALLS, NOT_RUN, ONE_SEED, SEVERAL_SEEDS
from robreg.claims.registry import CLAIMS
from robreg.claims.uncertainty import LEVEL
from robreg.runs.variant import base_attack, describe_setting, paper_name

VERDICTS = {
    "holds": "several seeds: the 95 % interval of the effect excludes 0 in the claimed direction",
    "fails": "several seeds: the interval excludes 0 in the opposite direction",
    "undecided": "several seeds: the interval contains 0, or there is no interval",
    "seen": "one seed: these networks show the claimed effect; nothing is known of another training",
    "not seen": "one seed: these networks show the opposite effect",
    "not clear": "one seed: these networks do not show either",
    NOT_RUN: "the study does not have the networks that the claim needs",
}
_VERDICT_PHRASES = {  # singular and plural, after a count
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    "undecided": ("is undecided", "are undecided"),
    "seen": ("is seen", "are seen"),
    "not seen": ("is not seen", "are not seen"),
    "not clear": ("is not clear", "are not clear"),
    NOT_RUN: ("was not run", "were not run"),
}
_BEYOND = "beyond the paper (our own claims, and the paper's claims on networks that it does not show)"
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
    tested; unrun: the names of the settings that were not run.
    """

    text: str
    source: str
    statistic: str
    judged: tuple[SettingView, ...]
    unrun: tuple[str, ...]


@dataclass(frozen=True)
class GroupView:
    """Claims about one topic. anchor: the id of the group in the page; counts: the number of each verdict."""

    title: str
    anchor: str
    claims: tuple[ClaimView, ...]
    counts: Mapping[str, int]

    @property
    def judged(self) -> list[ClaimView]:
        """Claims that were tested in at least one setting."""
        return [claim for claim in self.claims if claim.judged]

    @property
    def unrun(self) -> list[ClaimView]:
        """Claims that were not run in at least one setting."""
        return [claim for claim in self.claims if claim.unrun]


_SIZES = ("smallest_effect", "at_low")


def group_claims(frame: pd.DataFrame) -> list[GroupView]:
    """Group the rows of claims.parquet (one row per claim and setting) by topic; unknown columns are ignored."""
    members: dict[str, list[dict[str, Any]]] = {}
    for row in to_rows(frame):
        members.setdefault(_topic(row), []).append(row)
    known = [title for title in _ORDER if title in members]
    titles = [*known, *(title for title in members if title not in known)]
    return [
        GroupView(title, f"claims-{index}", _claim_views(members[title]), count_verdicts(members[title]))
        for index, title in enumerate(titles, 1)
    ]


def count_verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count each verdict. Raises ValueError if a row has a verdict that is not in VERDICTS."""
    verdicts = [row["verdict"] for row in rows]
    unknown = sorted(set(map(str, verdicts)) - VERDICTS.keys())
    if unknown:
        raise ValueError(
            f"claims: unknown verdict {', '.join(unknown)}; a verdict must be one of {', '.join(VERDICTS)}"
        )
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def summary_sentences(frame: pd.DataFrame) -> list[str]:
    """Summarise all claims in sentences: the paper's, those beyond it, what chance gives, and those that fail."""
    rows = to_rows(frame)
    beyond = [row for row in rows if row["source"] == EXTENSION]
    sentences = [_summary([row for row in rows if row["source"] != EXTENSION], "of the paper")]
    if beyond:
        sentences.append(_summary(beyond, _BEYOND))
    sentences += _chance(rows) + _too_small(rows)
    failed: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "fails":
            failed.setdefault(row["claim"].rstrip("."), []).append(setting_name(row))
    if failed:
        sentences.append(
            "Claims that fail: " + "; ".join(f"{text} ({'; '.join(places)})" for text, places in failed.items()) + "."
        )
    return sentences


def _chance(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """State how many verdicts chance alone would decide; [] if several seeds judge nothing."""
    changes = {claim.id for claim in CLAIMS if claim.zero_if_equal}
    several = [
        row for row in rows if row["verdict"] in SEVERAL_SEEDS and row.get("p") is not None and row["id"] in changes
    ]
    if not several:
        return []
    surprising = sum(row["verdict"] in SEVERAL_SEEDS[:2] and row["q"] > 1 - LEVEL for row in several)
    remark = f" Of those decided here, {surprising} would not be at a false discovery rate of 5 % (q above 0.05)."
    return [
        f"{len(several)} of these verdicts are about a change with the strength, by several seeds. If the strength "
        f"changed nothing at all, chance alone would decide about {(1 - LEVEL) * len(several):.1f} of them."
        f"{remark if surprising else ''}"
    ]


def _too_small(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the undecided claims about a fall that the study would have seen only if it exceeded the quantity itself."""
    falling = {claim.id for claim in CLAIMS if claim.sign == FALLS}
    names = []
    for row in rows:
        if row["verdict"] != SEVERAL_SEEDS[2] or row["id"] not in falling:
            continue
        smallest, at_low = (math.nan if row.get(key) is None else row[key] for key in _SIZES)  # NaN is never larger
        if smallest > at_low > 0:
            names.append(f"{row['claim'].rstrip('.')} ({setting_name(row)})")
    if not names:
        return []
    return [
        "This study has too few seeds or images for these claims, because only a fall by more than the whole value at "
        f"the lower strength would have been decided: {'; '.join(names)}."
    ]


def setting_name(row: Mapping[str, Any]) -> str:
    """Name the setting of a row, such as "digits, resnet8, FGSM"; missing, null and default values are left out."""
    words = describe_setting(row.get("train_attack"), row.get("spectral_norm"), row.get("space"))
    parts = [row.get("dataset"), row.get("arch"), *words]
    return ", ".join(str(part) for part in parts if part) or "any"


def to_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a frame to a list of rows, with None for missing values."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _summary(rows: Sequence[Mapping[str, Any]], origin: str) -> str:
    """Count claims and verdicts: "Of 12 claims of the paper, 8 were tested. Counting each claim ..., 15 hold, ..."."""
    number = count_verdicts(rows)
    ran = [row["id"] for row in rows if row["verdict"] != NOT_RUN]
    claims = len({row["id"] for row in rows})
    start = f"Of {claims} claim{'s' if claims != 1 else ''} {origin},"
    if not ran:
        return f"{start} none was tested here."
    parts = []
    for words, introduction in ((SEVERAL_SEEDS, ""), (ONE_SEED, "in networks of one seed, ")):
        if any(number[key] for key in words):
            parts.append(introduction + ", ".join(_count(key, number[key]) for key in words))
    if number[NOT_RUN]:
        parts.append(_count(NOT_RUN, number[NOT_RUN]))
    tested = len(set(ran))
    be = "was" if tested == 1 else "were"
    return f"{start} {tested} {be} tested. Counting each claim once per setting: {'; '.join(parts)}."


def _count(verdict: str, number: int) -> str:
    return f"{number} {_VERDICT_PHRASES[verdict][number != 1]}"


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
    statistics = {row["statistic"] for row in rows}
    common = statistics.pop() if len(statistics) == 1 else ""
    return ClaimView(
        text=rows[0]["claim"],
        source="; ".join(dict.fromkeys(row["source"] for row in rows)),
        statistic=common or "",
        judged=tuple(_setting_view(row, common) for row in rows if row["verdict"] != NOT_RUN),
        unrun=tuple(setting_name(row) for row in rows if row["verdict"] == NOT_RUN),
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
