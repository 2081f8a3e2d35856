"""What a study needs of its runs: the measures behind its figures, tables and claims, and those of every study."""

from collections.abc import Iterable, Mapping
from typing import Any

from robreg.runs.catalogue import FIGURES, TABLES

# Every report says of every network how accurate it is, and whether its adversarial accuracy can be trusted.
ALWAYS = ("margins", "apgd", "attacks", "masking", "sv", "metrics")
CLAIMED = ("metrics", "margins", "svstd", "lossvar", "spread")  # the tables that claims are judged by
_MADE_TOGETHER = {"svstd": "sv", "live": "sv", "padding": "sv"}  # tables of one rule, which has the name of the first


def judges_claims(study: Mapping[str, Any]) -> bool:
    """Return whether a study's block of config.yaml wants the paper's claims judged and its numbers compared."""
    return bool(study.get("claims", True))


def measures(study: Mapping[str, Any], shown: Iterable[str]) -> list[str]:
    """List the rules that measure a study's runs, in the order of the workflow.

    study: its block of config.yaml; shown: its figures and tables.
    """
    tables = {need for item in shown for need in {**FIGURES, **TABLES}[item].needs}
    tables |= set(CLAIMED) if judges_claims(study) else set()
    rules = {_MADE_TOGETHER.get(table, table) for table in tables}
    return [*ALWAYS, *(rule for rule in ("lossvar", "spread", "theory") if rule in rules)]
