"""Count the claims of a study, each once, and name those that do not hold."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from robreg.claims.claim import EXTENSION, FALLS, NOT_RUN, ONE_SEED, SEVERAL_SEEDS
from robreg.claims.registry import CLAIMS
from robreg.claims.uncertainty import LEVEL
from robreg.report.claims_section import SECOND_STRENGTH, setting_name, to_rows, with_reasons
from robreg.report.phrases import join_words
from robreg.runs.catalogue import Run

_SIZES = ("smallest_effect", "at_low")
_PHRASES = {  # what is said of a claim, after its number: singular and plural
    "holds": ("holds wherever several seeds test it", "hold wherever several seeds test them"),
    "fails": ("fails in at least one setting", "fail in at least one setting"),
    "undecided": ("is undecided in at least one setting", "are undecided in at least one setting"),
    "seen": ("is seen in networks of one seed", "are seen in networks of one seed"),
    "not seen": ("is not seen in networks of one seed", "are not seen in networks of one seed"),
    "not clear": ("is not clear in networks of one seed", "are not clear in networks of one seed"),
    SECOND_STRENGTH: ("needs a network of a second strength", "need networks of a second strength"),
    NOT_RUN: ("has no network here", "have no network here"),
}


def count_claims(frame: pd.DataFrame, runs: Sequence[Run]) -> dict[str, int]:
    """Count the claims of claims.parquet by what the study says of them; every claim has exactly one of _PHRASES."""
    return _count(with_reasons(to_rows(frame), runs))


def _count(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    members: dict[str, set[str]] = {}
    for row in rows:
        members.setdefault(row["id"], set()).add(row["verdict"])
    found = [_status(verdicts) for verdicts in members.values()]
    return {key: found.count(key) for key in _PHRASES if key in found}


def _status(verdicts: set[str]) -> str:
    """Return what is said of a claim by its verdicts in all settings: several seeds count more than one."""
    for yes, no, open_ in (SEVERAL_SEEDS, ONE_SEED):
        if here := verdicts & {yes, no, open_}:
            return no if no in here else open_ if open_ in here else yes
    return SECOND_STRENGTH if SECOND_STRENGTH in verdicts else NOT_RUN


def summary_sentences(frame: pd.DataFrame, runs: Sequence[Run]) -> list[str]:
    """State the number of claims, each counted once, and name those that do not hold."""
    rows = with_reasons(to_rows(frame), runs)
    counts = _count(rows)
    total = sum(counts.values())
    own = len({row["id"] for row in rows} - {row["id"] for row in rows if row["source"] != EXTENSION})
    origin = f" ({own} of our own, the others of the paper)" if own else " of the paper"
    parts = [f"{number} {_PHRASES[key][number != 1]}" for key, number in counts.items()]
    return [
        f"Of {total} claim{'s' if total != 1 else ''}{origin}, {join_words(parts)}.",
        *_failed(rows),
        *_few_seeds(rows),
    ]


def _failed(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Name the claims that do not hold, with the settings, first those that several seeds decide."""
    for verdict, words in (("fails", "What does not hold"), ("not seen", "Not seen")):
        places: dict[str, list[str]] = {}
        for row in rows:
            if row["verdict"] == verdict:
                places.setdefault(row["claim"].rstrip("."), []).append(setting_name(row))
        if places:
            yield f"{words}: " + "; ".join(f"{text} ({'; '.join(where)})" for text, where in places.items()) + "."


def remarks(frame: pd.DataFrame) -> list[str]:
    """State what chance gives, and which claims the study could not have decided."""
    rows = to_rows(frame)
    return _chance(rows) + _too_small(rows)


def _few_seeds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Explain why a study of two seeds leaves most of its claims undecided; [] for other studies."""
    decided = [row for row in rows if row["verdict"] in SEVERAL_SEEDS]
    open_ = sum(row["verdict"] == SEVERAL_SEEDS[2] for row in decided)
    if not open_ or max(row.get("n_seeds") or 0 for row in decided) != 2:
        return []
    return [
        f"{open_} of the {len(decided)} verdicts by several seeds are undecided, because two seeds say little about "
        "how much seeds differ: the intervals are wide, and more seeds would narrow them."
    ]


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
