"""Group a study's runs by what they share: everything but strength and seed."""

from collections.abc import Sequence

from robreg.runs.catalogue import Run


def group_by_setting(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Split runs into settings, each with a name such as "digits, resnet8"; order is kept.

    A setting is data set, network, training attack, space and bound. Standard training (AR 0) has no attack, so its
    runs belong to the setting of every attack that its like were trained with.
    """
    trained = {_name(run, run["train_attack"]) for run in runs if run["ar"]}
    names = {id(run): (_names(run) & trained) or {_name(run, "pgd")} for run in runs}
    order = dict.fromkeys(
        name for run in sorted(runs, key=lambda run: not run["ar"]) for name in sorted(names[id(run)])
    )
    return {name: [run for run in runs if name in names[id(run)]] for name in order}


def strengths(runs: Sequence[Run]) -> list[int]:
    """List the strengths (1/255) of runs, growing."""
    return sorted({int(run["ar"]) for run in runs})


def _names(run: Run) -> set[str]:
    return {_name(run, attack) for attack in (("pgd", "fgsm") if run["ar"] == 0 else (run["train_attack"],))}


def _name(run: Run, attack: str) -> str:
    parts = [run["dataset"], run["arch"]]
    parts += ["FGSM"] if attack == "fgsm" else []
    parts += [] if run["spectral_norm"] is None else [f"spectral norm ≤ {run['spectral_norm']:g}"]
    parts += ["normalised space"] if run["space"] == "normalised" else []
    return ", ".join(map(str, parts))
