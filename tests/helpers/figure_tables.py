"""Runs to draw figures from: small tables whose numbers follow from strength and seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers.study_files import write_masking

from robreg.tables import parquet, schemas

STRENGTHS, SEEDS, COMPARE = (0, 8, 16, 32), (0, 1, 2), (8, 32)
META = {"dataset": "digits", "variant": "ar8", "seed": 0, "version": "0", "settings_hash": "abcdef0123456789"}
N = 40  # examples per split


def make_runs(
    folder: Path, strengths: Sequence[int] = STRENGTHS, seeds: Sequence[int] = SEEDS, **setting: Any
) -> list[dict[str, Any]]:
    """Write the tables of a run for every strength and seed below folder, and return the runs.

    setting: the keys of the runs that differ from a run on digits, trained with PGD in pixel space without a bound.
    """
    runs = []
    for ar in strengths:
        for seed in seeds:
            run = {"dataset": "digits", "variant": f"ar{ar}" + (f"-s{seed}" if seed else ""), "arch": "resnet8"}
            run |= {"train_attack": "pgd", "space": "pixel", "spectral_norm": None, "ar": ar, "seed": seed}
            run |= {"default_arch": "resnet8", "paper": None, "published": []} | setting
            own = [str(value) for key, value in setting.items() if key not in ("dataset", "published")]
            run["folder"] = str(folder / run["dataset"] / "-".join([run["variant"], *own]))
            make_run(Path(run["folder"]), ar, seed, factor=run["spectral_norm"] or 1)
            runs.append(run)
    return runs


def of_paper(folder: Path) -> list[dict[str, Any]]:
    """Write runs in the paper's settings: data sets, a deeper network, bounds, FGSM, and one in normalised space."""
    c10 = {"dataset": "c10", "paper": "c10", "published": [{"label": "Madry et al. 2018", "ar": 8, "robust_acc": 50}]}
    settings: list[dict[str, Any]] = [
        c10,
        {"dataset": "c100"},
        {"dataset": "tin", "arch": "wrn50", "default_arch": "wrn50"},
    ]
    settings += [c10 | {"arch": "resnet110"}] + [c10 | {"spectral_norm": bound} for bound in (1.0, 3.0, 5.0)]
    settings += [c10 | {"train_attack": "fgsm"}, {"dataset": "c100", "train_attack": "fgsm"}]
    runs = [run for one in settings for run in make_runs(folder, [8, 16, 32], [0], **one)]
    return runs + make_runs(folder, [16], [0], space="normalised", **c10)


def make_run(folder: Path, ar: int, seed: int, factor: float = 1) -> None:
    rng = np.random.default_rng([ar, seed])
    margin = rng.normal(10 - ar / 8, 5 - ar / 16, 2 * N)
    prob = 1 / (1 + np.exp(-margin))
    wrong = (margin < 0).astype(int)
    columns: dict[str, Any] = {
        "split": ["train"] * N + ["test"] * N,
        "index": [*range(N), *range(N)],
        "label": [0] * 2 * N,
    }
    columns |= {"prediction": wrong, "margin": margin, "prob": prob, "loss": -np.log(prob)}
    parquet.write(folder / "margins.parquet", "margins", columns, META)
    numbers = dict.fromkeys(schemas.SCHEMAS["metrics"].names, 1.0)
    numbers |= {
        "train_acc": 99.0,
        "test_acc": 90 - ar / 10 + seed,
        "acc_gap": 9 - ar / 10 + seed,
        "pgd_acc": 30.0 + ar + seed,
    }
    numbers |= {"loss_gap": factor * (0.1 - ar / 500 + seed / 100), "robust_acc": 29.0 + ar}
    parquet.write(folder / "metrics.parquet", "metrics", {key: [value] for key, value in numbers.items()}, META)
    variation = rng.exponential(2 - ar / 20, N)
    columns = {"eps": [4.0] * N + [16.0] * N, "index": [*range(N), *range(N)], "loss_clean": [0.0] * 2 * N}
    both = [*variation, *4 * variation]
    columns |= {"loss_adv": [0.0] * 2 * N, "variation": [0.0] * 2 * N, "prob_clean": [1.0] * 2 * N}
    columns |= {"prob_adv": [1 - value for value in both], "prob_variation": both}
    parquet.write(folder / "lossvar.parquet", "lossvar", columns, META)
    layers: dict[str, Any] = {key: [3] * 3 for key in schemas.SCHEMAS["svstd"].names} | {
        "name": [*"abc"],
        **dict.fromkeys(("kind", "operator", "method"), ["conv"] * 3),
    }
    layers |= {"layer": [1, 2, 3], "std": [1 + seed / 10 - ar / 100 + layer / 5 for layer in range(3)]}
    parquet.write(folder / "svstd.parquet", "svstd", layers, META)
    live: dict[str, Any] = {name: [1] * 3 for name in schemas.SCHEMAS["live"].names}
    live |= {"layer": layers["layer"], "name": layers["name"], "std_live": layers["std"]}
    parquet.write(folder / "live.parquet", "live", live, META)
    rows = [(layer, kind) for kind in ("random", "pgd") for layer in range(4)]
    passed: dict[str, Any] = {
        "layer": [layer for layer, _ in rows],
        "name": ["x"] * 8,
        "perturbation": [kind for _, kind in rows],
    }
    passed |= {
        "eps": [32.0] * 8,
        "n": [N] * 8,
        "mean": [1 + (kind == "pgd") + layer + seed / 10 for layer, kind in rows],
    }
    write_masking(folder, META)
    parquet.write(folder / "spread.parquet", "spread", passed | {"std": [0.5 - ar / 100] * 8}, META)
    write_examples(folder, ar, seed)
    epochs = {"epoch": [1, 2], "lr": [0.1, 0.1], "loss": [1.0, 0.5], "acc": [50.0, 90.0], "sigma_max": [None, None]}
    parquet.write(
        folder / "history.parquet", "history", epochs | {"seconds": [2.0, 1.5], "examples_per_s": [1.0, 1.0]}, META
    )


def write_examples(folder: Path, ar: int, seed: int) -> None:
    """Write two images of 1 x 2 x 3 pixels, attacked by half of radius 32 and, if ar is not 0, of radius ar."""
    rows = [(name, eps, index) for name, eps in (("evaluation", 32), ("training", ar)) if eps for index in (3, 5)]
    same = {"space": "pixel", "step": 8.0, "steps": 10, "restarts": 1, "channels": 1, "height": 2, "width": 3}
    columns: dict[str, Any] = {name: [value] * len(rows) for name, value in same.items()}
    columns |= {"radius": [name for name, _, _ in rows], "eps": [float(eps) for _, eps, _ in rows]}
    columns |= {"index": [index for _, _, index in rows], "label": [index - 3 for _, _, index in rows]}
    columns |= {"prediction": columns["label"], "margin": [9.0 + seed] * len(rows)}
    columns |= {"adversarial_margin": [(ar - eps) / 4 + 0.5 for _, eps, _ in rows]}
    columns |= {"adversarial_prediction": [7 if margin < 0 else 0 for margin in columns["adversarial_margin"]]}
    columns |= {"image": [[0, 51, 102, 153, 204, 255]] * len(rows)}
    columns |= {"adversarial": [[0.2 * pixel + (-1) ** pixel * eps / 510 for pixel in range(6)] for _, eps, _ in rows]}
    ordered = {name: columns[name] for name in schemas.SCHEMAS["examples"].names}
    parquet.write(folder / "examples.parquet", "examples", ordered, META)
