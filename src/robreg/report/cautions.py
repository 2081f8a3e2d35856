"""State in sentences what a study cannot show, and which of its networks cannot be relied on."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from robreg.checks.run_checks import MIN_TRAINED
from robreg.report.phrases import format_range, join_words
from robreg.runs.settings import Settings
from robreg.runs.variant import base_attack, paper_name

_PAPER_DATA = {  # the setting `paper`: kind of the official files, name
    "c10": ("cifar10", "CIFAR-10"),
    "c100": ("cifar100", "CIFAR-100"),
    "tin": ("tiny-imagenet", "Tiny-ImageNet"),
}
_PAPER_NETWORKS = ("resnet56", "resnet110", "wrn50")
_ALWAYS = (  # a limit, a table with more about it, and the sentence that is added if the study lists that table
    (
        "Adversarial accuracy is an upper estimate: an attack stronger than the evaluation attack may find more "
        "adversarial examples.",
        "attacks",
        " APGD, in the table of attacks, is a stronger attack, run on fewer examples.",
    ),
    (
        "As in the paper, adversarial accuracy counts only examples that are classified correctly when clean, so "
        "networks are compared on different examples.",
        "attacks",
        " Robust accuracy, in the table of attacks, counts all examples.",
    ),
    (
        "As in the paper, spectra are those of circular convolutions, whose input wraps around at the edges; the "
        "networks pad with zeros.",
        "padding",
        " The table of zero-padded spectra shows how much the two differ.",
    ),
)
_LISTED = 10  # parts of networks
_MIN_ROBUST = 5.0  # percent; below this adversarial accuracy, FGSM training has collapsed


def limits(
    settings: Sequence[Settings], titles: Mapping[str, str], *, counts: Sequence[int], tables: Collection[str]
) -> list[str]:
    """List, in sentences, what a study cannot show.

    settings: those of its runs; titles: of its data sets, by name; counts: the numbers of seeds of its settings;
    tables: the tables that it lists.
    """
    data = {one["dataset"]: one for one in settings}
    sentences = [limit for name, one in data.items() if (limit := _other_data(one, titles[name]))]
    others = {one["arch"]: one["factory"] for one in settings if paper_name(one["arch"]) not in _PAPER_NETWORKS}
    own = [name for name, factory in others.items() if factory]
    smaller = [name for name, factory in others.items() if not factory]
    if own:
        sentences.append(
            f"The paper does not use {join_words(own)}; it uses ResNet-56, ResNet-110 and a wide ResNet-50."
        )
    if smaller:
        which = f"{join_words(smaller)} {'is' if len(smaller) == 1 else 'are'}"
        sentences.append(f"{which} far smaller than the paper's networks (ResNet-56, ResNet-110, wide ResNet-50).")
    if sentences:
        sentences.append(
            "Therefore, the numbers should not be compared with the paper's; only the directions of changes can be."
        )
    n_seeds = format_range(counts)
    if n_seeds == "1":
        sentences.append(
            "There is only one seed per setting, so nothing here shows how much results vary between seeds."
        )
    else:
        sentences.append(
            f"Means are over {n_seeds} seeds per setting, so standard deviations are uncertain themselves."
        )
    sentences += [limit for name, one in data.items() if (limit := _other_files(one, titles[name]))]
    return sentences + [limit + (more if name in tables else "") for limit, name, more in _ALWAYS]


def cautions(rows: Sequence[Mapping[str, Any]], classes: Mapping[str, int]) -> list[str]:
    """Name the networks whose training seems to have failed, and those that hide their gradients from attacks.

    rows: one per run, with dataset, variant, ar, train_attack, train_acc and pgd_acc (percent, or None), and masked,
    the checks for hidden gradients that it failed; classes: the number of classes, by data set.
    """
    sentences = []
    for row in rows:
        guess = 100 / classes[row["dataset"]]
        name = f"{row['dataset']}/{row['variant']}"
        if row["train_acc"] < MIN_TRAINED * guess:
            sentences.append(
                f"{name} has hardly learned anything: its training accuracy is {row['train_acc']:.1f} %, and guessing "
                f"gives {guess:.1f} %."
            )
        elif base_attack(row["train_attack"]) == "fgsm" and row["ar"] and (row["pgd_acc"] or 0.0) < _MIN_ROBUST:
            sentences.append(
                f"{name} has collapsed: after training with FGSM, it does not withstand PGD (adversarial accuracy "
                f"{row['pgd_acc'] or 0.0:.1f} %)."
            )
        if row["masked"]:
            sentences.append(
                f"{name} hides its gradients, which attacks need to find adversarial examples, so its adversarial "
                f"accuracies say little. Failed checks (masking.parquet): {', '.join(row['masked'])}."
            )
    return sentences


def describe_weak_attacks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence that names unprotected networks that the evaluation attack hardly changes, in a list; or [].

    rows: of the audit, with place (the folder of a run) and found (percent of correct examples that are left correct).
    """
    if not rows:
        return []
    names = ", ".join(f"{row['place'].removeprefix('results/')} ({row['found']:.1f} %)" for row in rows)
    return [
        "The evaluation attack is too weak to compare networks with: it leaves almost all correctly classified test "
        f"examples correct even of networks that nothing protects, {names}. Raise eps or step under evaluation in "
        "config.yaml; both are in 1/255."
    ]


def describe_unmeasured(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Name the parts of networks that have no singular values; found: reasons by architecture and part."""
    sentences = []
    for arch, parts in found.items():
        listed = [f"{name} ({reason})" for name, reason in list(parts.items())[:_LISTED]]
        more = f" and {len(parts) - _LISTED} more" if len(parts) > _LISTED else ""
        if listed:
            sentences.append(f"These parts of {arch} have no singular values here: {', '.join(listed)}{more}.")
    return sentences


def _other_data(one: Settings, title: str) -> str:
    """Return a sentence if a data set does not stand for one of the paper's, or is only a part of it; "" otherwise."""
    if one["paper"] is None:
        return f"The paper does not use {title}; it uses CIFAR-10, CIFAR-100 and Tiny-ImageNet."
    part = one["data"]["max_train"] or one["data"]["max_test"]
    return f"{title} is only a part of the paper's {_PAPER_DATA[one['paper']][1]}." if part else ""


def _other_files(one: Settings, title: str) -> str:
    """Return a sentence if a data set stands for one of the paper's but is not read from its official files."""
    kind, name = _PAPER_DATA.get(one["paper"], ("", ""))
    if not kind or one["data"]["kind"] == kind:
        return ""
    return (
        f"{title} stands for the paper's {name}: it has the same images, but from other files. If these use lossy "
        "compression, such as JPEG, the pixel values differ."
    )
