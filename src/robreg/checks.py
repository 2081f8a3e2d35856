"""Invariants of one run's tables: what cannot be otherwise if they are right, held against each other."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robreg import table

NOISE = 1e-9  # of sums of the same numbers in another order, relative to 1
FLOAT32 = 1e-6  # of what was computed in float32
_TABLES = ("history", "margins", "attacks", "lossvar", "sv", "svstd", "metrics", "masking")
_SAME = ("dataset", "variant", "seed", "settings_hash")
Tables = Mapping[str, pd.DataFrame]
Row = dict[str, Any]

log = logging.getLogger(__name__)


def record(folder: Path, *, bound: float | None) -> None:
    """Write checks.parquet of a run, a row per check, or raise ValueError if one is violated.

    folder: the run's, with its tables; bound: the spectral norm that was promised of every layer, None for none.
    All rows go to the log, whatever comes out.
    """
    tables = {kind: table.read(folder / f"{kind}.parquet").to_pandas() for kind in _TABLES}
    own = [table.metadata(folder / f"{kind}.parquet") for kind in _TABLES]
    rows = [*check(tables, bound=bound), _same_run(own)]
    refuse(rows, f"{folder}/*.parquet")
    columns = {name: [row[name] for row in rows] for name in table.SCHEMAS["checks"].names}
    table.write(folder / "checks.parquet", "checks", columns, {key: own[0][key] for key in (*_SAME, "version")})


def check(tables: Tables, *, bound: float | None) -> list[Row]:
    """Hold a run's tables against each other: a row per check. tables: by kind; bound: as for record."""
    margins = {str(split): part.sort_values("index") for split, part in tables["margins"].groupby("split")}
    rows = [row for split, part in margins.items() for row in _margins(split, part)]
    rows += _metrics(tables["metrics"].iloc[0], margins, tables["attacks"])
    rows += _attacks(tables["attacks"], margins["test"])
    rows += _variation(tables["lossvar"], margins["test"])
    rows += _spectra(tables["sv"], tables["svstd"], tables["metrics"].iloc[0])
    if bound is not None:
        rows += _bounds(tables["svstd"], tables["history"], bound)
    return rows


def refuse(rows: Sequence[Row], where: str) -> None:
    """Log every row; raise ValueError, naming them and the mend, if any has not passed."""
    for row in rows:
        found = f"{row['found']:g} {row['relation']} {row['expected']:g}"
        log.info("%s %s: %s: %s", "holds" if row["passed"] else "VIOLATED", row["check"], row["what"], found)
    if bad := [row for row in rows if not row["passed"]]:
        said = "; ".join(f"{row['check']} ({row['what']}: {row['found']:g}, not {row['expected']:g})" for row in bad)
        raise ValueError(f"{where} contradict each other: {said}; delete those tables and make them again")


def equal(name: str, what: str, found: float, expected: float, tolerance: float = NOISE) -> Row:
    """Make the row of a check that two numbers are equal, within tolerance relative to the larger of 1 and expected."""
    close = abs(found - expected) <= tolerance * max(1.0, abs(expected))  # false of NaN
    return _row(name, what, found, "=", expected, tolerance, passed=close)


def at_most(name: str, what: str, found: float, limit: float, tolerance: float = NOISE) -> Row:
    """Make the row of a check that a number is at most another, within tolerance relative to the larger of 1 and it."""
    return _row(name, what, found, "<=", limit, tolerance, passed=found <= limit + tolerance * max(1.0, abs(limit)))


def none(name: str, what: str, bad: "pd.Series[bool] | np.ndarray") -> Row:
    """Make the row of a check that is violated nowhere: found counts the places."""
    return equal(name, what, float(np.asarray(bad).sum()), 0.0)


def _row(name: str, what: str, found: float, relation: str, expected: float, tolerance: float, *, passed: bool) -> Row:  # noqa: PLR0913
    values = {"found": float(found), "relation": relation, "expected": float(expected), "tolerance": tolerance}
    return {"check": name, "what": what, **values, "passed": bool(passed)}


def _margins(split: str, part: pd.DataFrame) -> Iterator[Row]:
    right = part["prediction"] == part["label"]
    positive = (part["margin"] > 0) | ((part["margin"] == 0) & right)  # two equal logits: the first is predicted
    name = f"{split} share of positive margins (%) and accuracy"
    yield equal(f"positive_margins_{split}", name, 100 * positive.mean(), 100 * right.mean())
    yield none(f"probability_{split}", f"{split} probabilities outside 0 to 1", ~part["prob"].between(0, 1))
    gap = (np.exp(-part["loss"].astype("float64")) - part["prob"]).abs().max()
    yield at_most(f"loss_{split}", f"{split} probability and exp(-loss), largest difference", gap, 0.0, FLOAT32)


def _metrics(metrics: pd.Series, margins: Tables, attacks: pd.DataFrame) -> Iterator[Row]:
    acc = {split: 100 * float(np.mean(part["prediction"] == part["label"])) for split, part in margins.items()}
    loss = {split: float(np.mean(part["loss"].to_numpy("float64"))) for split, part in margins.items()}
    own = {"train_acc": acc["train"], "test_acc": acc["test"], "acc_gap": acc["train"] - acc["test"]}
    own |= {"train_loss": loss["train"], "test_loss": loss["test"], "loss_gap": loss["test"] - loss["train"]}
    for name, value in own.items():
        yield equal(f"metrics_{name}", f"{name} and its value from the margins", metrics[name], value)
    (pgd,) = attacks[(attacks["attack"] == "pgd") & (attacks["split"] == "test")].to_dict("records")
    for name, column in (("robust_acc", "acc_robust"), ("pgd_acc", "acc_conditional")):
        if pd.notna(pgd[column]):  # of no correct example nothing is left
            yield equal(f"metrics_{name}", f"{name} and its value from the attack", metrics[name], pgd[column])
    yield at_most("robust_below_clean", "robust and clean accuracy (%)", metrics["robust_acc"], metrics["test_acc"])


def _attacks(attacks: pd.DataFrame, margins: pd.DataFrame) -> Iterator[Row]:
    test = attacks[attacks["split"] == "test"]
    right = (margins["prediction"] == margins["label"]).to_numpy()
    ordered = (test["n_robust"] >= 0) & (test["n_robust"] <= test["n_correct"]) & (test["n_correct"] <= test["n"])
    yield none("attack_counts", "attacks without robust <= correct <= all", ~ordered)
    other = test["n_correct"] != [right[:n].sum() for n in test["n"]]
    yield none("attack_correct", "attacks that count other correct examples than the margins", other)
    rates = (test["acc_robust"] - 100 * test["n_robust"] / test["n"]).abs().max()
    yield at_most("attack_rates", "acc_robust and its counts (%), largest difference", rates, 0.0)
    apgd = test[test["attack"] == "apgd"].set_index("loss")["n_robust"]
    strongest = apgd.drop("worst").min()
    yield at_most("attack_worst", "examples that survive APGD's worst case, and one loss", apgd["worst"], strongest)


def _variation(lossvar: pd.DataFrame, margins: pd.DataFrame) -> Iterator[Row]:
    yield none("variation_negative", "loss variations below 0", lossvar["variation"] < 0)
    own = margins.set_index("index")["loss"].loc[lossvar["index"]].to_numpy()
    yield none("variation_clean", "clean losses other than the margins'", lossvar["loss_clean"] != own)
    gap = (lossvar["loss_adv"] - lossvar["loss_clean"] - lossvar["variation"]).abs() / lossvar["loss_adv"].clip(lower=1)
    yield at_most("variation_difference", "variation and the losses' difference", gap.max(), 0.0, FLOAT32)


def _spectra(sv: pd.DataFrame, svstd: pd.DataFrame, metrics: pd.Series) -> Iterator[Row]:
    size = svstd["height"] * svstd["width"]
    smaller = np.minimum(svstd["c_in"] * size, svstd["c_out"] * size // svstd["stride"] ** 2)
    counted = sv.groupby("layer")["multiplicity"].sum().reindex(svstd["layer"]).to_numpy()
    wrong = (svstd["n"] != smaller) | (smaller != counted)
    yield none("spectrum_size", "layers without min(rows, columns) singular values", wrong)
    for row in svstd.to_dict("records"):
        sigma, n = sv.loc[sv["layer"] == row["layer"], ["sigma", "multiplicity"]].to_numpy().T
        mean = float(np.average(sigma, weights=n))
        std = math.sqrt(np.average((sigma - mean) ** 2, weights=n))
        own = {"mean": mean, "std": std, "min": sigma.min(), "max": sigma.max()}
        gap = max(abs(row[key] - value) for key, value in own.items())
        yield at_most(f"spectrum_{row['layer']}", f"mean, std, min, max of {row['name']} and its values", gap, 0.0)
    log10 = float(np.log10(svstd["max"]).sum())
    known = metrics["log10_spectral_complexity"]
    yield equal("spectral_complexity", "log10 spectral complexity and its value from the layers", known, log10)


def _bounds(svstd: pd.DataFrame, history: pd.DataFrame, bound: float) -> Iterator[Row]:
    yield at_most("bound", "largest singular value of all layers, and the bound", svstd["max"].max(), bound, FLOAT32)
    last = np.array(history.sort_values("epoch")["sigma_max"].iloc[-1], dtype=float)
    gap = np.abs(last - svstd["max"].to_numpy()).max() if len(last) == len(svstd) else math.inf
    yield at_most("bound_history", "norms after the last epoch, and those measured", gap, 0.0, 1e-5)


def _same_run(metadata: Sequence[Mapping[str, Any]]) -> Row:
    others = [one for one in metadata if any(one.get(key) != metadata[0].get(key) for key in _SAME)]
    return equal("same_run", "tables of another run or other settings", len(others), 0.0)
