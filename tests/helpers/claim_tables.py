"""Make tables of networks that behave as the paper says, without any network."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robreg.tables import parquet, schemas

SIZES = {"train": 400, "test": 3000}


def make_tables(folder: Path, ar: int, seed: int, *, softness: float, skewed: bool) -> None:
    """Write the tables of a network that behaves as the paper says.

    softness: how strongly it does so; 16 is like AR 16. skewed: whether the training margins are skewed.
    """
    draw = np.random.default_rng([ar, seed])
    shared = np.random.default_rng(7)  # the part of the margins that all networks share
    margins: dict[str, list[Any]] = {name: [] for name in schemas.SCHEMAS["margins"].names}
    for split, n in SIZES.items():
        kind = shared.gamma(2.0, size=n) / 2 if skewed and split == "train" else shared.normal(1.0, 0.8, size=n)
        shift = 0.6 if split == "train" else -0.05 * softness / 16
        margin = (kind + shift + draw.normal(0, 0.05, n)) * (14 - 0.3 * softness)
        loss = np.log1p(np.exp(-margin))
        columns = {"split": [split] * n, "index": range(n), "label": [0] * n, "prediction": (margin < 0).astype(int)}
        columns |= {"margin": margin, "prob": np.exp(-loss), "loss": loss}
        for name, values in columns.items():
            margins[name] += list(values)
    parquet.write(folder / "margins.parquet", "margins", margins, {})
    numbers = dict.fromkeys(schemas.SCHEMAS["metrics"].names, 1.0) | {"pgd_acc": 40.0 + 2 * softness}
    parquet.write(folder / "metrics.parquet", "metrics", {key: [value] for key, value in numbers.items()}, {})
    n = SIZES["test"]
    variation = shared.gamma(0.5, size=(2, n)) * [[1.0], [2.0]] / (5 + softness) * draw.uniform(0.97, 1.03)
    variation /= 10  # so that nearly all are probabilities
    rows = {"eps": [1.0] * n + [2.0] * n, "index": [*range(n)] * 2, "loss_clean": [1.0] * 2 * n}
    rows |= {"loss_adv": [1.0] * 2 * n, "variation": [0.0] * 2 * n}  # claims do not use the cross entropy
    rows |= {"prob_clean": [1.0] * 2 * n, "prob_adv": 1 - variation.ravel(), "prob_variation": variation.ravel()}
    parquet.write(folder / "lossvar.parquet", "lossvar", rows, {})
    make_layers(folder, softness, draw)


def make_layers(folder: Path, softness: float, draw: np.random.Generator) -> None:
    """Write svstd.parquet and spread.parquet."""
    layers = 56
    std = np.linspace(0.8, 1.4, layers) - 0.015 * softness * np.where(np.arange(layers) % 8 == 4, -0.4, 1.0)
    rows: dict[str, Any] = {"layer": range(1, layers + 1), "name": [f"layer{index}" for index in range(layers)]}
    rows |= {"kind": ["conv"] * (layers - 1) + ["linear"]}
    rows |= {name: [1] * layers for name in schemas.SCHEMAS["svstd"].names[3:10]}
    rows |= {name: [1] * layers for name in schemas.SCHEMAS["svstd"].names[14:20]}
    rows |= {"operator": ["circular"] * layers, "method": ["fft"] * layers}
    rows |= {"error_mean": [None] * layers, "error_std": [None] * layers}
    rows |= {"mean": [1.0] * layers, "std": std + draw.normal(0, 0.001, layers), "min": [0.0] * layers, "max": std}
    ordered = {name: rows[name] for name in schemas.SCHEMAS["svstd"].names}
    parquet.write(folder / "svstd.parquet", "svstd", ordered, {})
    found = pd.DataFrame(
        [
            {"layer": layer, "name": f"layer{layer}", "perturbation": name, "eps": 8.0, "n": 100}
            | {"mean": 2 - 0.05 * softness + draw.normal(0, 0.01), "std": 0.5 - 0.02 * softness + draw.normal(0, 0.01)}
            for name in ("random", "pgd")
            for layer in range(layers + 1)
        ]
    )
    parquet.write(folder / "spread.parquet", "spread", found.to_dict("list"), {})


def make(root: Path, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the tables of runs under root; return the runs with their folders."""
    for run in runs:
        folder = root / run["folder"]
        softness = run["ar"] / 2 if run["paper"] == "c100" else run["ar"]  # c100 concentrates less, as in the paper
        make_tables(folder, run["ar"], run["seed"], softness=softness, skewed=run["paper"] == "c10")
        run["folder"] = str(folder)
    return runs


def run(dataset: str, ar: int, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Return a run on a data set that the paper does not have."""
    plain = {"arch": "resnet8", "train_attack": "pgd", "space": "pixel", "spectral_norm": None, "paper": None}
    own = {**plain, "default_arch": "resnet8", **more, "dataset": dataset, "ar": ar, "seed": seed}
    parts = [own[key] for key in ("dataset", "arch", "train_attack", "space", "spectral_norm", "ar", "seed")]
    return {**own, "folder": "/".join(map(str, parts)), "variant": f"ar{ar}-s{seed}"}
