"""State what a study cost and how it was made: times, memory, versions and hashes."""

from collections.abc import Mapping, Sequence
from typing import Any

from robreg.report.costs import RunAccount, rule_costs, run_accounts, versions
from robreg.report.phrases import join_distinct
from robreg.report.rule_graph import RULE_INPUTS, rule_graph
from robreg.report.units import format_duration
from robreg.tables import provenance


def provenance_context(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return times, memory, versions and hashes: what the study cost and how it was made."""
    accounts = run_accounts(study["runs"], study["settings"])
    costs = rule_costs(study["name"], study["runs"], list(RULE_INPUTS))
    epochs = format_duration(sum(one.epochs_s for one in accounts))
    total = f"The training epochs of the {len(accounts)} networks took {epochs}"
    wall, cpu = (format_duration(sum(getattr(one, key) for one in costs)) for key in ("wall_s", "cpu_s"))
    measured = f"; all {sum(one.jobs for one in costs)} jobs together took {wall} ({cpu} of CPU time)."
    used = {key: join_distinct(getattr(one, key) for one in accounts) for key in ("version", "torch", "device")}
    return {
        "flow": rule_graph(),
        "accounts": accounts,
        "costs": costs,
        "times": total + (measured if costs else "."),
        "used": used,
        "code": code_sentences(accounts),
        "hashes": {
            "the package": provenance.package_hash(),
            "the code that decides the weights": provenance.code_hash(),
        },
        "versions": versions(),
    }


def code_sentences(accounts: Sequence[RunAccount]) -> str:
    """State which runs were trained with older or unrecorded code or with other settings, or cannot be verified."""
    names = {code: [one.name for one in accounts if one.code == code] for code in ("older code", "not recorded")}
    sentences = []
    if names["older code"]:
        sentences.append(
            "These networks were trained with older code, so training them again may give different results: "
            f"{', '.join(names['older code'])}."
        )
    if names["not recorded"]:
        sentences.append(
            f"For {len(names['not recorded'])} of {len(accounts)} runs, the code that trained them is not recorded."
        )
    if not sentences:
        sentences.append("The code that decides the weights has not changed since training.")
    if changed := [f"{one.name} ({one.differences})" for one in accounts if one.differences]:
        sentences.append(f"These networks were trained with other settings than those below: {', '.join(changed)}.")
    if unverified := [one.name for one in accounts if not one.verified]:
        sentences.append(
            f"For {len(unverified)} of {len(accounts)} runs, the checkpoint holds no logits to compare with, so it was "
            "not verified that the measured network is the one that was trained."
        )
    return " ".join(sentences)
