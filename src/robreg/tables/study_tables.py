"""Combine the tables of a study's runs: one row per run, and a summary with one row per setting over its seeds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from robreg.runs.catalogue import Run
from robreg.tables import files, parquet
from robreg.tables.results import evaluation_row

KEYS = ["dataset", "arch", "train_attack", "space", "spectral_norm", "ar", "seed"]
SETTING = KEYS[:-1]
_ACCURACIES = ["train_acc", "test_acc", "acc_gap", "train_loss", "test_loss", "loss_gap", "pgd_acc", "robust_acc"]
_APGD = {
    "cross_entropy": "apgd_ce_robust",
    "dlr": "apgd_dlr_robust",
    "worst": "apgd_robust",
}  # columns of the table of attacks, by loss


def gather(runs: Sequence[Run], kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Concatenate one table (or the given columns of it) of all runs, with the columns KEYS in front."""
    frames = []
    for run in runs:
        frame = _read(run, kind, columns)
        frames.append(pd.DataFrame({key: [run[key]] * len(frame) for key in KEYS}).join(frame))
    return pd.concat(frames, ignore_index=True)


def table1(runs: Sequence[Run]) -> pd.DataFrame:
    """Return mean and std (ddof 0) over test examples of the loss variation at every eps (paper, Table 1).

    It is given as the probability of the label, as the paper's numbers suggest, and as cross entropy in nats. It is the
    largest that the attack finds, a lower bound on the maximal one.
    """
    return _one_row_per_run(runs, _variation_columns)


def table2(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the test accuracy (percent), and the losses and their gap (nats) (paper, Table 2)."""
    return gather(runs, "metrics", ["test_acc", "train_loss", "test_loss", "loss_gap"])


def table3(runs: Sequence[Run]) -> pd.DataFrame:
    """Return accuracies (percent), losses (nats), their gaps, and PGD accuracy (paper, Tables 3 to 6)."""
    return gather(runs, "metrics", _ACCURACIES)


def attacks(runs: Sequence[Run]) -> pd.DataFrame:
    """Compare the accuracies (percent) under PGD and under APGD, which attacks the first apgd_n test examples.

    pgd_acc, and pixel_acc_eps for PGD with a radius in pixels (1/255) whatever the space of the run, are over the
    examples that are classified correctly without an attack; the other accuracies are over all attacked test examples.
    The accuracy for a loss without a row is null.
    """
    return _one_row_per_run(runs, _attack_columns)


def padding(runs: Sequence[Run]) -> pd.DataFrame:
    """Compare the spectra of the zero-padded operators with those of the circular ones.

    Over the n_dense convolutions whose zero-padded spectrum was computed in full: the mean std of both spectra, and the
    mean of (zero - circular) / circular of the stds. Over all layers: median and maximum of max_zero / max_circular,
    the largest max_zero, which a bound holds for, and the log10 of the products of max_circular (the spectral
    complexity, as in metrics) and of max_zero. The first is null if a layer has no circular operator (its applied one
    counts in the columns of max_zero alone), the second if a max_zero is 0.
    """
    return _one_row_per_run(runs, _padding_columns)


def theory(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the quantities of Theorem 3.1 and Lemma 3.1."""
    return gather(runs, "theory")


def b2(runs: Sequence[Run], compare: Sequence[int], *, live: bool = True) -> pd.DataFrame:
    """Return sum and mean of the decreases and increases of the layers' std of singular values (paper, appendix B.2).

    The changes are from the first to the second strength of compare (columns ar and ar_high), for every setting and
    seed that has both; over the convolutions, as in the paper, and over all layers. A mean over no layers is null.
    live: whether to add columns for the std without dead rows and frozen columns (live.parquet), which leave out layers
    of which nothing is left in one of the two networks.
    Raises ValueError if no setting has both strengths for the same seed.
    """
    low, high = compare
    other = {_key_without_strength(run): run for run in runs if run["ar"] == high}
    rows = []
    for run in runs:
        if run["ar"] == low and _key_without_strength(run) in other:
            keys = {key: run[key] for key in KEYS} | {"ar_high": high}
            change = _std_changes(run, other[_key_without_strength(run)], live=live)
            rows += [
                keys | {"layers": "convolutions"} | _decrease_and_increase(change[change["kind"] == "conv"]),
                keys | {"layers": "all"} | _decrease_and_increase(change),
            ]
    if not rows:
        raise ValueError(f"b2: no setting has both strengths {low} and {high} for the same seed; correct compare")
    return pd.DataFrame(rows)


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Make one row per setting: {metric}_mean and {metric}_std over seeds (ddof 1, null for one seed), and n_seeds.

    If a metric is null for one of the seeds, so are its mean and its std: every number of a row is then over the
    n_seeds that the row states, and a network that has no value, such as one that classifies nothing correctly, is not
    passed over in a mean of the better ones.
    Text columns and ar_high distinguish rows in the same way as the columns of SETTING.
    """
    own = [name for name in frame.columns if name not in KEYS]
    metrics = [name for name in own if name != "ar_high" and pd.api.types.is_numeric_dtype(frame[name])]
    groups = frame.groupby([*SETTING, *(name for name in own if name not in metrics)], dropna=False, sort=False)
    parts = {f"{name}_mean": groups[name].mean(skipna=False) for name in metrics}
    parts |= {f"{name}_std": groups[name].std(ddof=1, skipna=False) for name in metrics}
    order = [f"{name}_{statistic}" for name in metrics for statistic in ("mean", "std")]
    return pd.DataFrame({**parts, "n_seeds": groups.size()})[[*order, "n_seeds"]].reset_index()


TABLE_FUNCTIONS: dict[str, Callable[[Sequence[Run]], pd.DataFrame]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table3,
    "table5": table3,
    "table6": table3,
    "attacks": attacks,
    "padding": padding,
    "theory": theory,
}


def failed_masking_checks(run: Run) -> list[str]:
    """List the checks for gradient masking that a run failed; if any, its adversarial accuracies say little."""
    frame = _read(run, "masking", ["check", "passed"])
    return frame.loc[~frame["passed"], "check"].tolist()


def compose(name: str, runs: Sequence[Run], compare: Sequence[int]) -> pd.DataFrame:
    """Make a table without writing it. The arguments and the last column are those of record."""
    frame = b2(runs, compare) if name == "b2" else TABLE_FUNCTIONS[name](runs)
    frame["masking_failed"] = _count_failed_checks(frame, runs)
    return frame.astype({"spectral_norm": "float64"})  # also a float column if all values are null


def record(name: str, runs: Sequence[Run], *, compare: Sequence[int], folder: Path, study: str) -> None:
    """Write a table and its summary into folder, as Parquet and as CSV.

    compare: the two strengths (1/255) of b2. The last column, masking_failed, counts the checks for gradient masking
    that the row's run failed (in b2: its two runs).
    """
    frame = compose(name, runs, compare)
    for stem, content in ((name, frame), (f"{name}_summary", summarise(frame))):
        parquet.write_frame(
            folder / f"{stem}.parquet", pa.Table.from_pandas(content, preserve_index=False), {"study": study}
        )
        with files.atomic_write(folder / f"{stem}.csv") as file:
            content.to_csv(file, index=False)


def _read(run: Run, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    return parquet.read(Path(run["folder"]) / f"{kind}.parquet", columns).to_pandas()


def _count_failed_checks(frame: pd.DataFrame, runs: Sequence[Run]) -> list[int]:
    """Count the checks for gradient masking that the run (or both runs) of each row failed."""
    counts = {(_key_without_strength(run), run["ar"]): len(failed_masking_checks(run)) for run in runs}
    rows: list[Run] = frame.astype(object).where(frame.notna(), None).to_dict("records")  # type: ignore[assignment]
    failed = []
    for row in rows:
        strengths = [row[key] for key in ("ar", "ar_high") if key in row]
        failed.append(sum(counts[_key_without_strength(row), ar] for ar in strengths))
    return failed


def _one_row_per_run(runs: Sequence[Run], row: Callable[[Run], dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([{key: run[key] for key in KEYS} | row(run) for run in runs])


def _variation_columns(run: Run) -> dict[str, Any]:
    row = {}
    frame = _read(run, "lossvar", ["eps", "prob_variation", "variation"])
    for column, name in (("prob_variation", "probability_variation"), ("variation", "loss_variation")):
        for eps, variation in frame.groupby("eps")[column]:
            row[f"{name}_mean_eps{eps:g}"] = variation.astype("float64").mean()
            row[f"{name}_std_eps{eps:g}"] = variation.astype("float64").std(ddof=0)
    return row


def _attack_columns(run: Run) -> dict[str, Any]:
    frame = _read(run, "attacks").query("split == 'test'")
    pgd = evaluation_row(frame)
    apgd = {row["loss"]: row for row in frame[frame["attack"] == "apgd"].to_dict("records")}
    row = {"pgd_acc": pgd["acc_conditional"], "robust_acc": pgd["acc_robust"], "apgd_n": apgd["worst"]["n"]}
    row |= {f"pixel_acc_eps{eps:g}": acc for eps, acc in _accuracies_in_pixels(frame).items()}
    return row | {name: apgd[loss]["acc_robust"] if loss in apgd else np.nan for loss, name in _APGD.items()}


def _accuracies_in_pixels(attacks: pd.DataFrame) -> dict[float, float]:
    """Return the conditional accuracy (percent) under PGD at every radius in pixels (1/255)."""
    pgd = attacks[(attacks["attack"] == "pgd") & (attacks["space"] == "pixel")]
    own = pgd.drop_duplicates("eps", keep="last").sort_values("eps")  # the evaluation attack comes first
    return dict(zip(own["eps"].tolist(), own["acc_conditional"].tolist(), strict=True))


def _padding_columns(run: Run) -> dict[str, Any]:
    frame = _read(run, "padding")
    both = frame[frame["std_circular"].notna()]
    dense = both[both["method"] == "dense"]  # convolutions larger than 1x1; no other layer is padded
    ratio = frame["max_zero"] / frame["max_circular"]
    return {
        "n_dense": len(dense),
        "std_circular": dense["std_circular"].mean(),
        "std_zero": dense["std_zero"].mean(),
        "std_relative_difference": (dense["std_zero"] / dense["std_circular"] - 1).mean(),
        "max_ratio_median": ratio.median(),
        "max_ratio_max": ratio.max(),
        "max_zero": frame["max_zero"].max(),
        "log10_complexity_circular": np.log10(frame["max_circular"]).sum() if len(both) == len(frame) else np.nan,
        "log10_complexity_zero": np.log10(frame["max_zero"].where(frame["max_zero"] > 0)).sum(skipna=False),
    }


def _key_without_strength(run: Run) -> tuple[Any, ...]:
    """Return the part of a run's key that runs share if they differ only in strength."""
    return tuple(run[key] for key in KEYS if key != "ar")


def _std_changes(low: Run, high: Run, *, live: bool) -> pd.DataFrame:
    """Return for every layer its kind, and the change of its std from low to high (live: also of its live part's)."""
    columns = ["layer", "name", "kind", "std"]
    both = _read(low, "svstd", columns).merge(
        _read(high, "svstd", columns), on=columns[:-1], validate="1:1", suffixes=("_low", "_high")
    )
    changes = both.assign(change=both["std_high"] - both["std_low"])
    if live:
        parts = [_read(run, "live", ["layer", "std_live"]).set_index("layer")["std_live"] for run in (low, high)]
        changes["change_live"] = changes["layer"].map(parts[1].astype("float64") - parts[0].astype("float64"))
    return changes


def _decrease_and_increase(changes: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for part, column in (("", "change"), ("live_", "change_live")):
        if column not in changes:
            continue
        change = changes[column]  # null where nothing of a layer is left, which is neither a decrease nor an increase
        falls, rises = -change[change < 0], change[change > 0]
        row |= {
            f"svstd_{part}decrease_sum": falls.sum(),
            f"svstd_{part}decrease_mean": falls.mean(),
            f"svstd_{part}increase_sum": rises.sum(),
            f"svstd_{part}increase_mean": rises.mean(),
            f"n_{part}decreased": len(falls),
            f"n_{part}increased": len(rises),
        }
    return row
