"""Compute the metrics of one run from its tables (paper, Tables 3 to 6; Definition 7)."""

import logging
import math
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from robreg.tables import parquet
from robreg.tables.results import evaluation_row

log = logging.getLogger(__name__)


def record(*, margins: Path, attacks: Path, svstd: Path, metrics: Path) -> None:
    """Write metrics.parquet of one run from its tables."""
    needed = {margins: ["split", "label", "prediction", "loss"], attacks: None, svstd: None}
    frames = [parquet.read(path, columns).to_pandas() for path, columns in needed.items()]
    unmeasured = parquet.read_metadata(svstd).get("unmeasured", ())
    parquet.write(
        metrics,
        "metrics",
        {key: [value] for key, value in compute_metrics(*frames, unmeasured=unmeasured).items()},
        parquet.read_metadata(margins),
    )


def compute_metrics(
    margins: pd.DataFrame, attacks: pd.DataFrame, svstd: pd.DataFrame, *, unmeasured: Collection[str] = ()
) -> dict[str, float | None]:
    """Compute accuracies in percent, losses in nats, gaps with the paper's signs, and the spectral complexity.

    margins, attacks, svstd: the run's tables; unmeasured: the parts of the network that svstd leaves out. acc_gap =
    train - test accuracy; loss_gap = test - train loss.
    spectral_complexity is the product of the largest singular values of all layers, for every call of each, as circular
    convolutions like all published spectra, or None if it is outside the range of a float; its log10 is finite. Both
    are None if a part of the network has no singular values. (The product for the layers as the network applies them,
    with zero padding, is in the study's table padding.) Raises ValueError if a layer has no positive singular value.
    """
    clean = margins.assign(acc=100.0 * (margins["prediction"] == margins["label"]), loss=margins["loss"].astype(float))
    means = clean.groupby("split")[["acc", "loss"]].mean()
    train, test = means.loc["train"], means.loc["test"]
    attack = evaluation_row(attacks)
    return {
        "train_acc": train["acc"],
        "test_acc": test["acc"],
        "acc_gap": train["acc"] - test["acc"],
        "train_loss": train["loss"],
        "test_loss": test["loss"],
        "loss_gap": test["loss"] - train["loss"],
        "pgd_acc": _or_none(attack["acc_conditional"]),
        "robust_acc": attack["acc_robust"],
        **_spectral_complexity(svstd, unmeasured),
    }


def _spectral_complexity(svstd: pd.DataFrame, unmeasured: Collection[str]) -> dict[str, float | None]:
    if unmeasured:
        names = ", ".join(unmeasured)
        log.warning("the spectral complexity is null, because these have no singular values: %s", names)
        return {"spectral_complexity": None, "log10_spectral_complexity": None}
    if not (svstd["max"] > 0).all():
        dead = svstd.loc[~(svstd["max"] > 0), "name"].tolist()
        raise ValueError(f"layers {dead} have no positive singular value, so the network is constant: train it again")
    log10 = float(sum(math.log10(value) * calls for value, calls in zip(svstd["max"], svstd["calls"], strict=True)))
    fits = abs(log10) < 308  # largest decimal exponent of a float
    return {"spectral_complexity": 10.0**log10 if fits else None, "log10_spectral_complexity": log10}


def _or_none(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
