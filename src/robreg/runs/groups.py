"""Group the runs of a study that differ only in strength and seed."""

from collections.abc import Collection, Sequence

from robreg.runs.catalogue import Run
from robreg.runs.variant import describe_setting


def group_by_setting(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by setting. A key is a name such as "digits, resnet8"; the runs of a setting keep their order.

    A setting is data set, architecture, training attack, space and bound. Standard training (AR 0) has no attack, so
    its runs belong to the setting of every attack that the otherwise equal adversarial runs were trained with.
    """
    trained = {_setting_name(run, run["train_attack"]) for run in runs if run["ar"]}
    attacks = {run["train_attack"] for run in runs}
    names = {id(run): (_candidate_names(run, attacks) & trained) or {_setting_name(run, "pgd")} for run in runs}
    order = dict.fromkeys(
        name for run in sorted(runs, key=lambda run: not run["ar"]) for name in sorted(names[id(run)])
    )
    return {name: [run for run in runs if name in names[id(run)]] for name in order}


def list_strengths(runs: Sequence[Run]) -> list[int]:
    """List the distinct training strengths of runs, in 1/255, in increasing order."""
    return sorted({int(run["ar"]) for run in runs})


def _candidate_names(run: Run, attacks: Collection[str]) -> set[str]:
    return {_setting_name(run, attack) for attack in (attacks if run["ar"] == 0 else (run["train_attack"],))}


def _setting_name(run: Run, attack: str) -> str:
    words = describe_setting(attack, run["spectral_norm"], run["space"])
    return ", ".join([run["dataset"], run["arch"], *words])
