"""The files of a study as the workflow makes them, with invented numbers that follow from strength and seed."""

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

from robreg.claims.claim import EXTENSION, NOT_RUN, ONE_SEED, SEVERAL_SEEDS
from robreg.paper import reference
from robreg.paper.comparison import COMPARED, SCHEMA
from robreg.report.page import Files, write
from robreg.runs import config, settings
from robreg.runs.catalogue import FIGURES, select_runs
from robreg.tables import parquet, schemas, study_tables

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
PAGES = ROOT / "workflow/report"
META = {"dataset": "digits", "variant": "ar8", "seed": 0, "version": "0", "settings_hash": "abcdef0123456789"}
SHAPES = {"digits": (1297, 500, [1, 8, 8], 10), "c10": (50000, 10000, [3, 32, 32], 10)}
STD = [0.25, 0.2, 0.3]  # of the channels, in the metadata of masking.parquet
AUDIT = {"check": ["one", "two"], "place": ["results/digits/ar0"] * 2, "found": [0.0, 0.0], "passed": [True, True]}
SHAPES |= dict.fromkeys(("c10wd", "c10e40"), SHAPES["c10"])
SHAPES |= {"c100": (50000, 10000, [3, 32, 32], 100), "tin": (100000, 10000, [3, 64, 64], 200)}
_EPOCHS = [
    {"epoch": 1, "lr": 0.1, "loss": 1.0, "acc": 50.0, "sigma_max": None, "seconds": 2.0, "examples_per_s": 1.0},
    {"epoch": 2, "lr": 0.1, "loss": 0.5, "acc": 90.0, "sigma_max": None, "seconds": 1.5, "examples_per_s": 1.0},
]
NUMBERS = ("at_low", "at_high", "effect", "ci_low", "ci_high")
CLAIMS = (  # id, claim, source, statistic, ci_over
    ("ge-gap-falls", "The generalisation gap of the loss falls with AR", "section 4.1, Figure 3a", "gap", "seeds"),
    ("test-acc-falls", "Test accuracy falls with AR", "section 4.1, Figure 3b", "accuracy", "seeds"),
    ("margin-std-falls", "Margins concentrate: their standard deviation falls", "4.2.1", "std", "test examples"),
    ("svstd-falls", "The std of singular values falls in most layers", "section 4.2", "share of layers", "seeds"),
    (
        "loss-variation-falls",
        "The maximal loss variation falls in mean",
        "appendix B.5, Table 1",
        "mean",
        "test examples",
    ),
    (
        "layers-even-out",
        "Layers pass perturbations on more evenly",
        EXTENSION,
        "std of the ratio",
        "seeds, test examples",
    ),
)


def make(name: str, title: str, *, seeds: Sequence[int] | None = None) -> tuple[dict[str, Any], Files]:
    """Make the files of a study below the working folder; return its description, as in the rule, and its files."""
    runs = [dict(run) for run in config.study_runs(CONFIG, name) if seeds is None or run["seed"] in seeds]
    for run in runs:
        _write_run(Path(run["folder"]), run)
    block, out = CONFIG["studies"][name], Path(f"results/studies/{name}")
    datasets = list(dict.fromkeys(run["dataset"] for run in runs))
    described = {"name": name, "title": title, "runs": runs, "not_run": [], "not_made": [], "compare": block["compare"]}
    described["titles"] = {data: CONFIG["datasets"][data]["title"] for data in datasets}
    described["shown"] = {
        item: only for part in ("figures", "tables") for item, only in config.study_items(CONFIG, name, part).items()
    }
    described["settings"] = {
        f"{run['dataset']}/{run['variant']}": settings.run_settings(CONFIG, run["dataset"], run["variant"])
        for run in runs
    }
    files = Files(
        figures=[_draw_placeholder(out / f"figures/{one}.svg") for one in config.study_items(CONFIG, name, "figures")],
        tables=[
            path
            for one, only in config.study_items(CONFIG, name, "tables").items()
            for path in _write_table(out, one, select_runs(one, runs, only), block["compare"])
        ],
        data=[_write_prepared(data) for data in datasets],
        claims=write_frame(out / "claims.parquet", claims(runs)),
        audit=write_frame(out / "audit.parquet", pd.DataFrame(AUDIT)),
        comparison=write_frame(out / "comparison.parquet", comparison(runs)),
        plot=_draw_placeholder(out / "figures/comparison.svg"),
    )
    return described, files


def page(name: str, title: str, *, seeds: Sequence[int] | None = None) -> Path:
    """Make a study's files and its report, with invented captions, below the working folder; return its path."""
    described, files = make(name, title, seeds=seeds)
    out = Path(f"results/studies/{name}/report.html")
    write(out, described, files, template=template())
    return out.resolve()


def template() -> Path:
    """Write the page's template and style, with invented captions for all items, and return the template's path."""
    folder = Path("pages")
    folder.mkdir(exist_ok=True)
    for part in ("report.html.j2", "index.html.j2", "report.css", "report.js"):
        (folder / part).write_bytes((PAGES / part).read_bytes())
    for item in (*FIGURES, *study_tables.TABLE_FUNCTIONS, "b2", "comparison"):
        seeds = "{% if n_seeds is defined %}Over {{ n_seeds }} seeds.{% endif %}"
        (folder / f"{item}.rst").write_text(f"What {item} shows.\n\nWhat to see: {item}.\n\n{seeds}\n")
    return folder / "report.html.j2"


def claims(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make rows for CLAIMS in settings of the paper, with invented verdicts for networks that the runs have."""
    rows = []
    places = [("c10", "resnet56", "pgd", None), ("c100", "resnet110", "pgd", None), ("c10", "resnet56", "fgsm", None)]
    places += [("c10", "resnet56", "pgd", 1.0), ("digits", "resnet8", "pgd", None)]
    for index, (key, text, source, statistic, over) in enumerate(CLAIMS):
        for place, (data, arch, attack, bound) in enumerate(places):
            ran = any((run["dataset"], run["arch"]) == (data, arch) for run in runs)
            effect = (0.031, -0.0042, 0.00087)[(index + place) % 3]
            width = (0.01, 0.001, 0.002)[(index + place) % 3]
            words = ONE_SEED if attack == "fgsm" else SEVERAL_SEEDS
            verdict = words[(index + place) % 3] if ran else NOT_RUN
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
            rows.append(
                row | {"ci_over": over, "n_seeds": (1 if attack == "fgsm" else 3) if ran else 0, "verdict": verdict}
            )
    return pd.DataFrame(rows).astype(dict.fromkeys(NUMBERS, float))


def comparison(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make a comparison of all numbers of the paper, with invented numbers of ours where a study has the network."""
    keys = ["dataset", "arch", "train_attack", "spectral_norm", "ar"]
    have = {tuple(run[key] for key in keys): run["space"] for run in runs}
    rows = []
    for row in reference.read_reference().astype(object).replace(np.nan, None).to_dict("records"):
        space = have.get(tuple(row[key] for key in keys))
        ran = space is not None
        row |= {"run_dataset": row["dataset"] if ran else None, "space": space}
        row |= {"ours_mean": row["paper"] * 1.01 if ran else None, "ours_std": None, "n_seeds": int(ran)}
        row |= {"difference": row["paper"] * 0.01 if ran else None, "note": row["note"] or None}
        rows.append(row | {"status": row["status"] or (COMPARED if ran else NOT_RUN)})
    real = ("spectral_norm", "ar_high", "paper", "ours_mean", "ours_std", "difference")
    return pd.DataFrame(rows)[SCHEMA.names].astype(dict.fromkeys(real, float))


def _write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write all tables of a run. The run on c100 that is trained with FGSM at AR 16 collapses."""
    meta = META | {key: run[key] for key in ("dataset", "variant", "seed")}
    for kind, rows in (_measures(run) | {"history": _EPOCHS}).items():
        columns = {key: [row[key] for row in rows] for key in schemas.SCHEMAS[kind].names}
        parquet.write(folder / f"{kind}.parquet", kind, columns, meta)
    write_masking(folder, meta, fgsm_collapse=_collapsed(run))


def _collapsed(run: Mapping[str, Any]) -> bool:
    return (run["dataset"], run["train_attack"], run["ar"]) == ("c100", "fgsm", 16)


def _measures(run: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    ar, seed = run["ar"], run["seed"]
    metrics = {"train_acc": 99.0, "test_acc": 90 - ar / 10 + seed, "acc_gap": 9 - ar / 10 + seed, "train_loss": 0.01}
    metrics |= {"test_loss": 0.4, "loss_gap": 0.1 - ar / 500 + seed / 100, "robust_acc": 25.0 + ar + seed}
    metrics |= {"pgd_acc": 0.5 if _collapsed(run) else 30.0 + ar + seed}
    radii = (4, 8, 16) if run["dataset"] == "digits" else (1, 2, 4)
    attacks = [("pgd", "cross_entropy"), ("apgd", "cross_entropy"), ("apgd", "dlr"), ("apgd", "worst")]
    layers = [(1, "conv1", "conv"), (2, "conv2", "conv"), (3, "linear", "linear")]
    changes = (-0.01, 0.002, 0.003)  # of the std of singular values, per layer and unit of strength
    return {
        "metrics": [_make_row("metrics", **metrics)],
        "margins": [
            _make_row("margins", split=split, index=i, margin=sign * (8 - ar / 10 + seed / 10))
            for split in ("train", "test")
            for i, sign in enumerate((1, -1))
        ],
        "theory": [_make_row("theory", first_term_lower=1 / (2 + ar + seed), w_min=1 / (3 + ar))],
        "lossvar": [
            _make_row("lossvar", eps=float(eps), index=i, prob_variation=eps / (20 + ar + i))
            for eps in radii
            for i in (0, 1)
        ],
        "attacks": [
            _make_row("attacks", attack=attack, loss=loss, split="test", acc_robust=20.0 + ar + index)
            for index, (attack, loss) in enumerate(attacks)
        ],
        "svstd": [
            _make_row("svstd", layer=layer, name=name, kind=kind, std=1 + seed / 10 + ar * change)
            for (layer, name, kind), change in zip(layers, changes, strict=True)
        ],
        "live": [
            _make_row("live", layer=layer, name=name, std_live=0.8 + seed / 10 + ar * change)
            for (layer, name, _), change in zip(layers, changes, strict=True)
        ],
        "padding": [
            _make_row("padding", layer=layer, name=name, method="dense", std_zero=1 - 0.001 * ar)
            for layer, name, _ in layers
        ],
    }


def _make_row(kind: str, /, **values: Any) -> dict[str, Any]:
    """Make a row of a run's table: the given values, and 1, True or "made" in the other columns."""
    kinds = {field.name: field.type for field in schemas.SCHEMAS[kind]}
    assert values.keys() <= kinds.keys()
    made = {pa.string(): "made", pa.bool_(): True}
    return {key: made.get(one, 1.0 if pa.types.is_floating(one) else 1) for key, one in kinds.items()} | values


def write_masking(folder: Path, meta: Mapping[str, Any], **failed: bool) -> None:
    """Write masking.parquet with two checks; failed: by name of a check, whether it failed."""
    rows = [_make_row("masking", check=check, passed=not failed.get(check)) for check in ("large_eps", "fgsm_collapse")]
    columns = {key: [row[key] for row in rows] for key in schemas.SCHEMAS["masking"].names}
    parquet.write(folder / "masking.parquet", "masking", columns, {**meta, "std": STD})


def _write_table(out: Path, name: str, runs: Sequence[Mapping[str, Any]], compare: Sequence[int]) -> list[Path]:
    """Write a table of runs and its summary as the workflow does, and return their paths."""
    study_tables.record(name, runs, compare=compare, folder=out / "tables", study="made")
    return [out / f"tables/{stem}.parquet" for stem in (name, f"{name}_summary")]


def _draw_placeholder(path: Path) -> Path:
    """Draw a small plot of the size of a figure, as SVG and PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "robreg"}):
        figure = Figure(figsize=(7.2, 2.4))
        figure.subplots().plot(np.sqrt(np.arange(9)))
        figure.savefig(path, metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=100)
    return path


def write_frame(path: Path, frame: pd.DataFrame) -> Path:
    parquet.write_frame(path, pa.Table.from_pandas(frame, preserve_index=False), {"study": "made"})
    frame.to_csv(path.with_suffix(".csv"))
    return path


def _write_prepared(data: str) -> Path:
    path = Path(f"data/prepared/{data}/meta.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    train, test, shape, classes = SHAPES[data]
    meta = {"n_train": train, "n_test": test, "shape": shape, "classes": classes, "std": STD[-shape[0] :]}
    path.write_text(json.dumps(meta))
    return path
