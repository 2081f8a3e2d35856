"""A study's files as the workflow leaves them, with made-up numbers that follow from strength and seed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from matplotlib.figure import Figure

from robreg import config, study, table
from robreg.item import FIGURES, chosen
from robreg.reference import MISPRINT
from robreg.report import Files, write

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
PAGES = ROOT / "workflow/report"
META = {"dataset": "digits", "variant": "ar8", "seed": 0, "version": "0", "settings_hash": "abcdef0123456789"}
SHAPES = {"digits": (1297, 500, [1, 8, 8], 10), "c10": (50000, 10000, [3, 32, 32], 10)}
SHAPES |= {"c100": (50000, 10000, [3, 32, 32], 100), "tin": (100000, 10000, [3, 64, 64], 200)}
NUMBERS = ("at_low", "at_high", "effect", "ci_low", "ci_high")
CLAIMS = (  # id, claim, source, statistic, ci_over
    ("ge-gap-falls", "The generalisation gap of the loss falls with AR", "section 4.1, Figure 3a", "gap", "seeds"),
    ("test-acc-falls", "Test accuracy falls with AR", "section 4.1, Figure 3b", "accuracy", "seeds"),
    ("margin-std-falls", "Margins concentrate: their standard deviation falls", "4.2.1", "std", "test examples"),
    ("svstd-falls", "The std of singular values falls in most layers", "section 4.2", "share of layers", "layers"),
    (
        "loss-variation-falls",
        "The maximal loss variation falls in mean",
        "appendix B.5, Table 1",
        "mean",
        "test examples",
    ),
    ("layers-even-out", "Layers pass perturbations on more evenly", "extension", "std of the ratio", "layers"),
)


def make(name: str, title: str, *, seeds: Sequence[int] | None = None) -> tuple[dict[str, Any], Files]:
    """Make the files of the study of this name below the working folder; its description as the rule has it."""
    runs = [dict(run) for run in config.study_runs(CONFIG, name) if seeds is None or run["seed"] in seeds]
    for run in runs:
        _run(Path(run["folder"]), run)
    block, out = CONFIG["studies"][name], Path(f"results/studies/{name}")
    datasets = list(dict.fromkeys(run["dataset"] for run in runs))
    described = {"name": name, "title": title, "runs": runs, "compare": block["compare"]}
    described["titles"] = {data: CONFIG["datasets"][data]["title"] for data in datasets}
    described["settings"] = {
        f"{run['dataset']}/{run['variant']}": config.settings(CONFIG, run["dataset"], run["variant"]) for run in runs
    }
    files = Files(
        figures=[_figure(out / f"figures/{one}.svg") for one in config.items(CONFIG, name, "figures")],
        tables=[path for one in config.items(CONFIG, name, "tables") for path in _table(out, one, runs)],
        data=[_prepared(data) for data in datasets],
        claims=write_frame(out / "claims.parquet", claims(runs)),
        comparison=write_frame(out / "comparison.parquet", comparison(runs)),
        plot=_figure(out / "figures/comparison.svg"),
    )
    return described, files


def page(name: str, title: str, *, seeds: Sequence[int] | None = None) -> Path:
    """Make a study's files and its report, with captions of our own, below the working folder."""
    described, files = make(name, title, seeds=seeds)
    out = Path(f"results/studies/{name}/report.html")
    write(out, described, files, template=template())
    return out.resolve()


def template() -> Path:
    """Copy the page's template and style, beside captions made up for all items."""
    folder = Path("pages")
    folder.mkdir(exist_ok=True)
    for part in ("report.html.j2", "report.css"):
        (folder / part).write_bytes((PAGES / part).read_bytes())
    for item in (*FIGURES, *study.MAKERS, "b2", "comparison"):
        seeds = "{% if n_seeds is defined %}Over {{ n_seeds }} seeds.{% endif %}"
        (folder / f"{item}.rst").write_text(f"What {item} shows.\n\n{seeds}\n")
    return folder / "report.html.j2"


def claims(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Judge CLAIMS in every setting of the paper: as the runs have it, or not run."""
    rows = []
    places = [("c10", "resnet56", "pgd", None), ("c100", "resnet110", "pgd", None), ("c10", "resnet56", "fgsm", None)]
    places += [("c10", "resnet56", "pgd", 1.0), ("digits", "resnet8", "pgd", None)]
    for index, (key, text, source, statistic, over) in enumerate(CLAIMS):
        for place, (data, arch, attack, bound) in enumerate(places):
            ran = any((run["dataset"], run["arch"]) == (data, arch) for run in runs)
            effect = (0.031, -0.0042, 0.00087)[(index + place) % 3]
            width = (0.01, 0.001, 0.002)[(index + place) % 3]
            verdict = ("holds", "fails", "undecided")[(index + place) % 3] if ran else "not run"
            row = {"id": key, "claim": text, "source": source, "dataset": data, "arch": arch, "train_attack": attack}
            row |= {
                "space": "pixel",
                "spectral_norm": bound,
                "ar_low": 4,
                "ar_high": 16,
                "statistic": f"{statistic}: AR 16 minus AR 4",
            }
            numbers = (0.1, 0.1 + effect, effect, effect - width, effect + width) if ran else (None,) * 5
            row |= dict(zip(NUMBERS, numbers, strict=True))
            rows.append(row | {"ci_over": over, "n_seeds": 3 if ran else 0, "verdict": verdict})
    return pd.DataFrame(rows).astype(dict.fromkeys(NUMBERS, float))


def comparison(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Hold made-up numbers of the paper beside ours."""
    rows = []
    for sheet, data, arch, bound in (
        ("3", "c10", "resnet56", None),
        ("6", "c10", "resnet56", 1.0),
        ("5", "tin", "wrn50", None),
    ):
        for metric, paper in (("train_acc", 99.51), ("test_acc", 88.86), ("loss_gap", 0.54), ("pgd_acc", 65.92)):
            for ar in (4, 8, 16):
                wanted = (data, arch, bound, ar, "pgd")
                keys = ("dataset", "arch", "spectral_norm", "ar", "train_attack")
                ran = any(tuple(run[key] for key in keys) == wanted for run in runs)
                row = {"table": sheet, "dataset": data, "run_dataset": data if ran else None, "arch": arch}
                row |= {"train_attack": "pgd", "space": "pixel", "spectral_norm": bound, "ar": ar, "ar_high": None}
                row |= {"metric": metric, "paper": paper - ar / 10, "ours_mean": paper - ar / 8 if ran else None}
                row |= {"ours_std": None, "n_seeds": int(ran), "difference": ar / 10 - ar / 8 if ran else None}
                odd = (metric, ar, sheet) == ("pgd_acc", 4, "3")
                status = MISPRINT if odd else "compared" if ran else "not run"
                rows.append(row | {"status": status, "note": "probable misprint" if odd else None})
    real = ("spectral_norm", "ar_high", "ours_mean", "ours_std", "difference")
    return pd.DataFrame(rows).astype(dict.fromkeys(real, float))


def _run(folder: Path, run: Mapping[str, Any]) -> None:
    """Metrics and history: a collapse of AR 16 trained with FGSM on c100."""
    numbers: dict[str, float | None] = dict.fromkeys(table.SCHEMAS["metrics"].names, 1.0)
    collapsed = (run["dataset"], run["train_attack"], run["ar"]) == ("c100", "fgsm", 16)
    numbers |= {"train_acc": 99.0, "pgd_acc": 0.5 if collapsed else 30.0 + run["ar"] + run["seed"]}
    meta = META | {key: run[key] for key in ("dataset", "variant", "seed")}
    table.write(folder / "metrics.parquet", "metrics", {key: [value] for key, value in numbers.items()}, meta)
    epochs = {"epoch": [1, 2], "lr": [0.1, 0.1], "loss": [1.0, 0.5], "acc": [50.0, 90.0], "sigma_max": [None, None]}
    table.write(
        folder / "history.parquet", "history", epochs | {"seconds": [2.0, 1.5], "examples_per_s": [1.0, 1.0]}, meta
    )


def _table(out: Path, name: str, runs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Make a table with the columns of its maker, and its summary as the workflow makes it."""
    frame = pd.DataFrame([row for run in chosen(name, runs) for row in _rows(name, run)])
    made = []
    for stem, content in ((name, frame), (f"{name}_summary", study.summarise(frame))):
        made.append(write_frame(out / f"tables/{stem}.parquet", content.astype({"spectral_norm": float})))
        content.to_csv(made[-1].with_suffix(".csv"))
    return made


def _rows(name: str, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = {key: run[key] for key in study.KEYS}
    ar, seed = run["ar"], run["seed"]
    if name == "b2":
        return [
            keys | {"ar_high": 32, "layers": layers, "decrease_sum": 1.2 + seed / 10, "increase_sum": 0.11}
            for layers in ("convolutions", "all")
            if ar == 8 or (run["dataset"] != "digits" and ar == 4)
        ]
    if name == "table1":
        radii = (4, 8, 16) if run["dataset"] == "digits" else (1, 2, 4)
        values = {f"loss_variation_{what}_eps{eps}": eps / (8 + ar + seed) for eps in radii for what in ("mean", "std")}
        return [keys | values]
    if name in ("theory", "attacks", "padding"):
        columns = [key for key in table.SCHEMAS["theory"].names if name == "theory"] or [
            f"{name}_{i}" for i in range(9)
        ]
        return [keys | {column: (index + 1) * (ar + seed + 1) / 7 for index, column in enumerate(columns)}]
    values = {"train_acc": 99.0, "test_acc": 90 - ar / 10 + seed, "acc_gap": 9 - ar / 10 + seed, "train_loss": 0.01}
    return [keys | values | {"test_loss": 0.4, "loss_gap": 0.1 - ar / 500 + seed / 100, "pgd_acc": 30.0 + ar + seed}]


def _figure(path: Path) -> Path:
    """Draw something of the size of a figure, as SVG and PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "robreg"}):
        figure = Figure(figsize=(3.55 if path.stem == "fig8" else 7.2, 2.4))
        figure.subplots().plot(np.sqrt(np.arange(9)))
        figure.savefig(path, metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=100)
    return path


def write_frame(path: Path, frame: pd.DataFrame) -> Path:
    table.write_frame(path, pa.Table.from_pandas(frame, preserve_index=False), {"study": "made"})
    frame.to_csv(path.with_suffix(".csv"))
    return path


def _prepared(data: str) -> Path:
    path = Path(f"data/prepared/{data}/meta.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    train, test, shape, classes = SHAPES[data]
    path.write_text(json.dumps({"n_train": train, "n_test": test, "shape": shape, "classes": classes}))
    return path
