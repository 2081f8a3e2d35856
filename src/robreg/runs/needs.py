"""What a study needs of its runs: the measures behind its figures, tables and claims, and the strengths it compares."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from robreg.runs.catalogue import FIGURES, TABLES, Run, select_plain, select_runs
from robreg.runs.settings import ConfigError

Study = Mapping[str, Any]  # a study's block of config.yaml
Shown = Mapping[str, Collection[str] | None]  # figures and tables, each with what it is restricted to, or None for all
# Every report says of every network how accurate it is, and whether its adversarial accuracy can be trusted.
ALWAYS = ("margins", "apgd", "attacks", "masking", "sv", "metrics")
CLAIMED = ("metrics", "margins", "svstd", "lossvar", "spread")  # the tables that claims are judged by
_MADE_TOGETHER = {"svstd": "sv", "live": "sv", "padding": "sv"}  # tables of one rule, which has the name of the first


def judges_claims(study: Study) -> bool:
    """Return whether a study judges the paper's claims and compares the paper's numbers with its own."""
    return bool(study.get("claims", True))


def measures(shown: Iterable[str], *, judged: bool) -> list[str]:
    """List the rules that measure runs, in the order of the workflow.

    shown: the figures and tables that show them; judged: whether claims are judged by them.
    """
    tables = {need for item in shown for need in {**FIGURES, **TABLES}[item].needs}
    tables |= set(CLAIMED) if judged else set()
    rules = {_MADE_TOGETHER.get(table, table) for table in tables}
    return [*ALWAYS, *(rule for rule in ("lossvar", "spread", "examples", "theory") if rule in rules)]


def measures_of(run: Run, runs: Sequence[Run], shown: Shown, *, judged: bool) -> list[str]:
    """Do as measures for one of the runs of a study, which not all of its figures and tables show."""
    return measures([item for item, only in shown.items() if run in select_runs(item, runs, only)], judged=judged)


def has_all_checked(study: Study, shown: Iterable[str]) -> bool:
    """Return whether a study's runs get all tables that the rule checks compares; otherwise its audit checks them."""
    return "lossvar" in measures(shown, judged=judges_claims(study))


def check_conditions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the checks of a run depend on beside its tables. settings: the run's resolved settings.

    bound: that holds for its layers as they are applied, None if they have none or are only clipped; unprotected:
    whether its network is trained without an attack and without a bound.
    """
    bound = settings["spectral_norm"]
    holds = settings["clip_rounds"] == "exact"
    return {"bound": bound if holds else None, "unprotected": settings["ar"] == 0 and bound is None}


def compared(name: str, study: Study, runs: Sequence[Run]) -> list[int]:
    """Return the two strengths that a study compares: those of its key compare, or else the ends of its own strengths.

    name: the study's; runs: all that it lists. The ends are the smallest strength above 0 and the largest one of the
    runs of PGD without a bound, in the first data set and architecture that has two; if there is only one above 0, it
    is compared with standard training. Without two strengths, a study that judges no claims compares nothing, and the
    list is empty. Raises ConfigError for one that judges claims.
    """
    if "compare" in study:
        return list(study["compare"])
    strengths: dict[tuple[str, str], set[int]] = {}
    for run in select_plain(runs) or runs:
        strengths.setdefault((run["dataset"], run["arch"]), set()).add(run["ar"])
    for found in (sorted(each) for each in strengths.values()):
        ends = [ar for ar in found if ar > 0] if len(found) > 2 else found
        if len(ends) > 1:
            return [ends[0], ends[-1]]
    if not judges_claims(study):
        return []
    raise ConfigError(
        f"config.yaml: studies.{name}.runs: a study compares two strengths, but no data set and architecture has two "
        "with attack: [pgd] and no spectral_norm; add one to ar, such as ar: [0, 8], or judge no claims, with "
        "claims: false"
    )
