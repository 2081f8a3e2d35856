"""Checks that the tables of one run are complete and consistent with each other."""

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robreg.checks.invariants import (
    FLOAT32,
    NOISE,
    RUN_IDENTITY,
    Row,
    at_most,
    count_violations,
    equal,
    raise_if_violated,
    same_run,
    with_files,
)
from robreg.checks.seals import CHECKED, CHECKPOINT, seal
from robreg.data.errors import describe_error
from robreg.networks.tensor_file import load_file
from robreg.tables import parquet, schemas
from robreg.tables.provenance import history_hash
from robreg.tables.results import evaluation_row

_ATTACK_SETTING = ["attack", "loss", "space", "start", "eps", "step", "steps", "restarts", "seed", "n"]
_NEEDED = {("pgd", "cross_entropy"), ("apgd", "cross_entropy"), ("apgd", "worst")}  # required attacks, losses
_UNKNOWN = -1.0  # stands for a percentage of no examples, which is null in the tables
# Percent of the correctly classified examples that PGD may leave correct in an unprotected network. On the digits it
# leaves 30 % of them with eps 32, and 93 % with eps 8. It leaves 98 % with eps 4, or with eps 32 and a step of 0.125,
# where networks of AR 0 and AR 8 differ less from each other (0.2 points) than from another seed (0.6).
_UNTOUCHED = 95.0
MIN_TRAINED = 2.0  # multiple of the training accuracy of guessing; below it, a network has hardly learned anything
Tables = Mapping[str, pd.DataFrame]

log = logging.getLogger(__name__)


def record(folder: Path, *, bound: float | None, unprotected: bool) -> None:
    """Check a run's tables and write checks.parquet, with one row per check; raise ValueError if a check fails.

    folder: the run's, with its tables; bound: the bound that holds for every layer's largest singular value as the
    network applies the layer, with zero padding; None if there is none, or if layers were only clipped; unprotected:
    whether the network was trained without an attack and without a bound. All rows are logged, whether or not the
    checks pass. Only the check of weak_attack does not raise: the tables are right, and the report names it.
    The table's metadata have the SHA-256 of the checkpoint and of the tables.
    """
    rows, own = check_folder(folder, CHECKED, bound=bound, unprotected=unprotected)
    columns = {name: [row[name] for row in rows] for name in schemas.SCHEMAS["checks"].names}
    meta = {key: own["margins.parquet"][key] for key in (*RUN_IDENTITY, "version")}
    meta["sealed"] = seal(folder, own)
    parquet.write(folder / "checks.parquet", "checks", columns, meta)


def check_folder(
    folder: Path, kinds: Sequence[str], *, bound: float | None, unprotected: bool
) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """Check a run's tables of these kinds as record does; return a row per check, and the files' metadata by name."""
    tables = {kind: parquet.read(folder / f"{kind}.parquet").to_pandas() for kind in kinds}
    own = {f"{kind}.parquet": parquet.read_metadata(folder / f"{kind}.parquet") for kind in kinds}
    variations = own.get("lossvar.parquet", {}).get("attack", {}).get("n")  # older tables have all examples
    options = {"variations": variations, "unmeasured": own["svstd.parquet"].get("unmeasured", ())}
    trained = "pretrained" not in parquet.read_settings(folder / "history.parquet")
    rows = [
        *check(tables, bound=bound, trained=trained, **options),
        *_check_checkpoint(folder / CHECKPOINT, own),
    ]
    rows.append(same_run(own, folder))
    raise_if_violated(rows, folder)
    if unprotected and _has_learned(tables):
        rows += weak_attack(tables["attacks"])
    return rows, own


def check(
    tables: Tables,
    *,
    bound: float | None,
    variations: int | None = None,
    unmeasured: Collection[str] = (),
    trained: bool = True,
) -> list[Row]:
    """Check a run's tables against each other and return one row per check.

    tables: by kind, those of CHECKED or of BASIC; bound: as for record; variations: the number of test examples in
    lossvar, None for all; unmeasured: the parts of the network that svstd leaves out; trained: whether the network was
    trained here, and did not come with its weights, so that it has a history. If a table has missing or duplicate rows,
    or values that are not finite, only the checks of completeness are returned, because the others cannot be computed.
    """
    completeness = [
        row
        for kind, complete in _complete_tables(tables, variations, unmeasured, trained=trained).items()
        for row in _check_completeness(kind, tables[kind], complete=complete)
    ]
    if not all(row["passed"] for row in completeness):
        return completeness
    margins = {str(split): part.sort_values("index") for split, part in tables["margins"].groupby("split")}
    attacks, svstd, metrics = tables["attacks"], tables["svstd"], tables["metrics"].iloc[0]
    rows = [row for split, part in margins.items() for row in _with_files(_check_margins(split, part), "margins")]
    rows += _with_files(_check_metrics(metrics, margins), "margins", "metrics")
    rows += _with_files(_check_attack_metrics(metrics, attacks), "attacks", "metrics")
    rows += _with_files(_check_attacks(attacks, margins["test"]), "margins", "attacks")
    rows += _with_files(_check_masking(tables["masking"], attacks), "attacks", "masking")
    if "lossvar" in tables:
        rows += _with_files(_check_variation(tables["lossvar"], margins["test"]), "margins", "lossvar")
    rows += _with_files(_check_spectra(tables["sv"], svstd), "sv", "svstd")
    rows += _with_files(_check_published(svstd, tables["live"], tables["padding"]), "svstd", "live", "padding")
    rows += _with_files(_check_live_part(tables["live"], svstd), "live", "svstd")
    rows += _with_files(_check_complexity(svstd, metrics, unmeasured), "svstd", "metrics")
    if bound is not None:
        norms = tables["history"].sort_values("epoch")["sigma_max"].tolist()
        rows += _with_files(_check_bounds(tables["padding"], norms, bound), "padding", "history")
    return [*completeness, *rows]


def _check_checkpoint(path: Path, own: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Check the history against the run's checkpoint, if it is there, and add its metadata to own, by file name."""
    if not path.exists():  # results may be passed on without their networks
        return
    try:
        meta = dict(load_file(path, "cpu")["meta"])
    except Exception as error:  # damaged files can raise any kind of error
        why = describe_error(error)
        raise ValueError(f"{path} is damaged, or not a checkpoint: delete it and train again ({why})") from error
    own[path.name] = meta
    if "history_sha256" in meta:  # missing in older checkpoints
        rows = parquet.read_history(path.with_name("history.parquet"))
        what = "histories other than that of the checkpoint's training"
        row = count_violations("history_checkpoint", what, history_hash(rows) != meta["history_sha256"])
        yield from with_files([row], "history.parquet", path.name)


def _has_learned(tables: Tables) -> bool:
    """Return whether a network is better than guessing; one that always predicts the same class cannot be attacked."""
    guess = 100 / (tables["margins"]["label"].max() + 1)
    return bool(tables["metrics"]["train_acc"].iloc[0] >= MIN_TRAINED * guess)


def weak_attack(attacks: pd.DataFrame) -> list[Row]:
    """Return the row of a check that PGD changes what an unprotected network predicts, and log a warning if it fails.

    If it fails, accuracies under this attack say nothing about any network: its eps or its step is too small. Returns
    no row if eps is 0, or if no example is classified correctly.
    """
    pgd = evaluation_row(attacks)
    if pgd["eps"] == 0 or pd.isna(pgd["acc_conditional"]):
        return []
    what = "percent of the correctly classified examples that PGD leaves correct, though nothing protects the network"
    row = at_most("attack_strength", what, pgd["acc_conditional"], _UNTOUCHED)
    if not row["passed"]:
        log.warning("%s: %s: %g; raise eps or step of evaluation, in 1/255", row["check"], what, row["found"])
    return [row]


def _with_files(rows: Iterable[Row], *kinds: str) -> list[Row]:
    return with_files(rows, *(f"{kind}.parquet" for kind in kinds))


def _complete_tables(
    tables: Tables, variations: int | None, unmeasured: Collection[str], *, trained: bool
) -> dict[str, bool]:
    """Return for every table whether each expected row is there exactly once."""
    masking = tables["masking"]
    splits = {split: part["index"] for split, part in tables["margins"].groupby("split")}
    n_test = len(splits.get("test", ()))
    radii = [part["index"] for _, part in tables["lossvar"].groupby("eps")] if "lossvar" in tables else []
    varied = n_test if variations is None else min(variations, n_test)
    attacks = _test_rows(tables["attacks"])
    kinds = set(attacks[["attack", "loss"]].itertuples(index=False, name=None))
    layers = {
        kind: set(zip(tables[kind]["layer"], tables[kind]["name"], strict=True))
        for kind in ("sv", "svstd", "live", "padding")
    }
    numbers, known = tables["svstd"]["layer"], tables["svstd"][tables["svstd"]["error_mean"].isna()]
    exact = set(zip(known["layer"], known["name"], strict=True))
    complete = {
        "history": _is_complete(tables["history"], trained=trained),
        "margins": splits.keys() == {"train", "test"} and all(_are_consecutive(part, 0) for part in splits.values()),
        "attacks": not attacks.duplicated(_ATTACK_SETTING).any() and kinds >= _NEEDED,
        "lossvar": len(radii) > 0 and all(_are_consecutive(part, 0) and len(part) == varied for part in radii),
        "sv": layers["sv"] == exact,
        "svstd": _are_consecutive(numbers, 1) or (len(unmeasured) > 0 and len(numbers) == 0),
        **{kind: layers[kind] == layers["svstd"] and len(tables[kind]) == len(numbers) for kind in ("live", "padding")},
        "metrics": len(tables["metrics"]) == 1,
        "masking": len(masking) > 0 and not masking["check"].duplicated().any(),
    }
    return {kind: found for kind, found in complete.items() if kind in tables}


def _is_complete(history: pd.DataFrame, *, trained: bool) -> bool:
    """Return whether a history has all epochs: none, if the network was not trained here."""
    return _are_consecutive(history["epoch"], 1) if trained else len(history) == 0


def _are_consecutive(values: pd.Series, first: int) -> bool:
    """Return whether values are first, first + 1, ... in any order, with at least one value."""
    return len(values) > 0 and np.array_equal(np.sort(values), np.arange(first, first + len(values)))


def _test_rows(attacks: pd.DataFrame) -> pd.DataFrame:
    return attacks[attacks["split"] == "test"]


def _check_completeness(kind: str, frame: pd.DataFrame, *, complete: bool) -> list[Row]:
    needed = frame.drop(columns=[name for name in frame.columns if name in schemas.NULLABLE])
    lost = needed.isna() | needed.isin([np.inf, -np.inf])
    rows = (
        count_violations(f"{kind}_rows", f"whether rows of {kind} are missing or twice", not complete),
        count_violations(f"{kind}_values", f"values of {kind} that are missing or not finite", lost),
    )
    return _with_files(rows, kind)


def _check_margins(split: str, part: pd.DataFrame) -> Iterator[Row]:
    right = part["prediction"] == part["label"]
    positive = (part["margin"] > 0) | ((part["margin"] == 0) & right)  # two equal logits: the first is predicted
    name = f"{split} share of positive margins (%) and accuracy"
    yield equal(f"positive_margins_{split}", name, 100 * positive.mean(), 100 * right.mean())
    wrong = np.where(right, part["margin"] < 0, part["margin"] > 0)
    yield count_violations(f"margin_sign_{split}", f"{split} margins of another sign than their prediction has", wrong)
    yield count_violations(f"probability_{split}", f"{split} probabilities outside 0 to 1", ~part["prob"].between(0, 1))
    margin, loss = part["margin"].astype("float64"), part["loss"].astype("float64")
    above = (part["prob"] - np.exp(-np.logaddexp(0, -margin))).max()  # equal for two logits, lower for more
    yield at_most(
        f"margin_probability_{split}", f"{split} probability, at most above its margin's", above, 0.0, FLOAT32
    )
    gap = (np.exp(-loss) - part["prob"]).abs().max()
    yield at_most(f"loss_{split}", f"{split} probability and exp(-loss), largest difference", gap, 0.0, FLOAT32)


def _check_metrics(metrics: pd.Series, margins: Tables) -> Iterator[Row]:
    acc = {split: 100 * float(np.mean(part["prediction"] == part["label"])) for split, part in margins.items()}
    loss = {split: float(np.mean(part["loss"].to_numpy("float64"))) for split, part in margins.items()}
    own = {"train_acc": acc["train"], "test_acc": acc["test"], "acc_gap": acc["train"] - acc["test"]}
    own |= {"train_loss": loss["train"], "test_loss": loss["test"], "loss_gap": loss["test"] - loss["train"]}
    for name, value in own.items():
        yield equal(f"metrics_{name}", f"{name} and its value from the margins", metrics[name], value)


def _check_attack_metrics(metrics: pd.Series, attacks: pd.DataFrame) -> Iterator[Row]:
    pgd = evaluation_row(attacks)
    for name, column in (("robust_acc", "acc_robust"), ("pgd_acc", "acc_conditional")):
        both = (_UNKNOWN if pd.isna(value) else value for value in (metrics[name], pgd[column]))
        yield equal(f"metrics_{name}", f"{name} and its value from the attack", *both)
    yield at_most("robust_below_clean", "robust and clean accuracy (%)", metrics["robust_acc"], metrics["test_acc"])


def _check_attacks(attacks: pd.DataFrame, margins: pd.DataFrame) -> Iterator[Row]:
    test = _test_rows(attacks)
    right = (margins["prediction"] == margins["label"]).to_numpy()
    ordered = (test["n_robust"] >= 0) & (test["n_robust"] <= test["n_correct"]) & (test["n_correct"] <= test["n"])
    yield count_violations("attack_counts", "attacks without robust <= correct <= all", ~ordered)
    other = test["n_correct"] != [right[:n].sum() for n in test["n"]]
    yield count_violations("attack_correct", "attacks that count other correct examples than the margins", other)
    for column, of_all in (("acc_robust", "n"), ("acc_conditional", "n_correct")):
        rate = (100 * test["n_robust"] / test[of_all].where(test[of_all] > 0)).fillna(_UNKNOWN)
        gap = (test[column].astype("float64").fillna(_UNKNOWN) - rate).abs().max()
        yield at_most(f"attack_{column}", f"{column} and its counts (%), largest difference", gap, 0.0)
    apgd = test[test["attack"] == "apgd"].set_index("loss")
    left, lost = apgd["n_robust"], apgd["n_correct"] - apgd["n_robust"]
    fewest, every = left.drop("worst").min(), lost.drop("worst").sum()
    yield at_most("attack_worst", "examples that survive APGD's worst case, and one loss", left["worst"], fewest)
    yield at_most("attack_lost", "examples lost to APGD's worst case, and to its losses", lost["worst"], every)


def _check_masking(masking: pd.DataFrame, attacks: pd.DataFrame) -> Iterator[Row]:
    before, after, value = (masking[name].astype("float64") for name in ("before", "after", "value"))
    outside = ~(before.fillna(0).between(0, 100) & after.fillna(0).between(0, 100))
    yield count_violations("masking_percent", "looks for hidden gradients with accuracies outside 0 to 100 %", outside)
    known = np.isclose(value.abs(), (before - after).abs(), rtol=0, atol=NOISE) | (value == after) | before.isna()
    yield count_violations("masking_value", "looks whose value is neither what is left nor what changed", ~known)
    other = masking["passed"] != (value <= masking["limit"])
    yield count_violations("masking_passed", "looks that pass beyond their limit, or fail within it", other)
    apgd = _test_rows(attacks).query("attack == 'apgd'").set_index("loss")["acc_robust"]
    unlike = (before != apgd["cross_entropy"]) | (after != apgd["worst"])
    compared = masking["check"] == "other_loss"
    yield count_violations(
        "masking_loss", "looks at APGD's losses with other accuracies than its own", compared & unlike
    )


def _check_variation(lossvar: pd.DataFrame, margins: pd.DataFrame) -> Iterator[Row]:
    yield count_violations("variation_negative", "loss variations below 0", lossvar["variation"] < 0)
    own = margins.set_index("index")["loss"].loc[lossvar["index"]].to_numpy()
    yield count_violations("variation_clean", "clean losses other than the margins'", lossvar["loss_clean"] != own)
    gap = (lossvar["loss_adv"] - lossvar["loss_clean"] - lossvar["variation"]).abs() / lossvar["loss_adv"].clip(lower=1)
    yield at_most("variation_difference", "variation and the losses' difference", gap.max(), 0.0, FLOAT32)
    for kind in ("clean", "adv"):
        gap = (np.exp(-lossvar[f"loss_{kind}"].astype("float64")) - lossvar[f"prob_{kind}"]).abs().max()
        yield at_most(f"variation_prob_{kind}", f"prob_{kind} and exp(-loss_{kind})", gap, 0.0, FLOAT32)
    gap = (lossvar["prob_clean"] - lossvar["prob_adv"] - lossvar["prob_variation"]).abs().max()
    yield at_most("variation_probability", "prob_variation and the probabilities' difference", gap, 0.0, FLOAT32)


def _check_spectra(sv: pd.DataFrame, svstd: pd.DataFrame) -> Iterator[Row]:
    smaller = np.minimum(svstd["rows"], svstd["columns"])
    estimated = svstd["error_mean"].notna()
    counted = sv.groupby("layer")["multiplicity"].sum().reindex(svstd["layer"]).to_numpy()
    wrong = (svstd["n"] != smaller) | (~estimated & (smaller != counted))
    yield count_violations("spectrum_size", "layers without min(rows, columns) singular values", wrong)
    circular = (svstd["operator"] != "circular") | (
        (svstd["columns"] == svstd["c_in"] * svstd["height"] * svstd["width"])
        & (svstd["rows"] * svstd["stride"] * svstd["stride_width"] * svstd["c_in"] == svstd["columns"] * svstd["c_out"])
    )
    yield count_violations("operator_size", "circular layers with other rows and columns than their size", ~circular)
    unlike = (svstd["method"] == "lanczos") != estimated
    ordered = (svstd["min"] <= svstd["mean"]) & (svstd["mean"] <= svstd["max"]) & (svstd["std"] >= 0)
    bad = unlike | (estimated & ~ordered)
    yield count_violations("spectrum_estimates", "estimates without an error, or out of order, or the reverse", bad)
    for row in svstd[~estimated].to_dict("records"):
        sigma, n = sv.loc[sv["layer"] == row["layer"], ["sigma", "multiplicity"]].to_numpy().T
        mean = float(np.average(sigma, weights=n))
        std = math.sqrt(np.average((sigma - mean) ** 2, weights=n))
        own = {"mean": mean, "std": std, "min": sigma.min(), "max": sigma.max()}
        gap = max(abs(row[key] - value) for key, value in own.items())
        yield at_most(f"spectrum_{row['layer']}", f"mean, std, min, max of {row['name']} and its values", gap, 0.0)


def _check_complexity(svstd: pd.DataFrame, metrics: pd.Series, unmeasured: Collection[str]) -> Iterator[Row]:
    known, itself = metrics["log10_spectral_complexity"], metrics["spectral_complexity"]
    missing = pd.isna(known) != (len(unmeasured) > 0)
    yield count_violations("complexity_null", "spectral complexity of a network with parts that have none", missing)
    if pd.isna(known):
        return
    log10 = float((np.log10(svstd["max"]) * svstd["calls"]).sum())
    yield equal("spectral_complexity", "log10 spectral complexity and its value from the layers", known, log10)
    if pd.notna(itself):  # null if it is outside the range of a float
        found = math.log10(itself) if itself > 0 else math.nan
        yield equal("log10_complexity", "log10 of the spectral complexity, and its column", found, known)


def _check_published(svstd: pd.DataFrame, live: pd.DataFrame, padding: pd.DataFrame) -> Iterator[Row]:
    """Check that the tables beside svstd repeat its std and max."""
    by_layer = [frame.sort_values("layer").reset_index(drop=True) for frame in (svstd, live, padding)]
    lost = by_layer[2]["std_circular"].isna() != ~by_layer[0]["operator"].isin(["circular", "matrix"])
    yield count_violations("padding_nulls", "layers with a circular spectrum but no circular operator", lost)
    published = by_layer[0][["std", "max"]].to_numpy()
    copies = (by_layer[1][["std", "max"]], by_layer[2][["std_circular", "max_circular"]])
    for name, copied in zip(("live", "padding"), copies, strict=True):
        other = copied.notna().to_numpy() & (copied.to_numpy() != published)
        yield count_violations(f"{name}_published", f"std and max in {name} other than in svstd", other)


def _check_live_part(live: pd.DataFrame, svstd: pd.DataFrame) -> Iterator[Row]:
    live, svstd = (frame.sort_values("layer").reset_index(drop=True) for frame in (live, svstd))
    rows, columns = live["dead_rows"].between(0, live["rows"]), live["frozen_columns"].between(0, live["columns"])
    wrong = ~(rows & columns & live["frozen_share"].between(0, 1))
    yield count_violations("live_counts", "layers with more dead or frozen channels than channels", wrong)
    gone = (live["dead_rows"] == live["rows"]) | (live["frozen_columns"] == live["columns"])
    null = live["std_live"].isna()  # with groups, nothing may be left of all of them, or an estimate be impossible
    other = (null != live["max_live"].isna()) | (gone & ~null) | (~gone & null & (svstd["groups"] == 1))
    yield count_violations("live_nulls", "layers with a live spectrum but no live part, or the reverse", other)
    ratio = (live["max_live"].astype("float64") / live["max"]).dropna()
    tolerance = FLOAT32 if svstd["error_mean"].notna().any() else NOISE
    what = "largest singular value of a live part, relative to its layer's"
    yield at_most("live_max", what, ratio.max() if len(ratio) else 0.0, 1.0, tolerance)


def _check_bounds(padding: pd.DataFrame, norms: Sequence[Sequence[float] | None], bound: float) -> Iterator[Row]:
    """Check the bound on every layer as the network applies it, with zero padding.

    padding: its largest singular values, measured without the projection's code; norms: for every epoch, the upper
    bounds on them that the projection of all layers returned, or None.
    """
    applied = padding.sort_values("layer")["max_zero"].to_numpy()
    what = "largest singular value of any layer as the network applies it, relative to the bound"
    yield at_most("bound", what, applied.max() / bound, 1.0, FLOAT32)
    largest = max(math.inf if each is None else max(each) for each in norms)
    yield at_most("bound_epochs", "largest norm after any epoch, relative to the bound", largest / bound, 1.0, FLOAT32)
    last = np.array(norms[-1], dtype=float)
    above = (applied - last).max() if last.shape == applied.shape else math.inf
    what = "largest singular values as the network applies the layers, at most above the norms after the last epoch"
    yield at_most("bound_history", what, above / bound, 0.0, FLOAT32)
