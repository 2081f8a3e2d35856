"""Gather the tables of a study's runs into the paper's tables: one row per run, and one per setting over seeds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from robreg import table

KEYS = ["dataset", "arch", "train_attack", "space", "spectral_norm", "ar", "seed"]
SETTING = KEYS[:-1]
TABLE_NEEDS = {"table1": "lossvar", "table3": "metrics"}  # the measure that a table is made from
FIGURE_NEEDS = {  # the measures that a figure is drawn from
    "fig1": ["svstd", "margins", "metrics"],
    "fig3": ["metrics"],
    "fig4": ["margins"],
    "fig5": ["margins", "svstd"],
    "fig8": ["lossvar"],
    "fig12": ["metrics"],
}
Run = Mapping[str, Any]  # KEYS, "variant", and "folder", where its tables are

_TABLE3 = ["train_acc", "test_acc", "acc_gap", "train_loss", "test_loss", "loss_gap", "pgd_acc", "robust_acc"]


def gather(runs: Sequence[Run], kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Stack one table (or the named columns of it) of every run, with KEYS in front."""
    frames = []
    for run in runs:
        frame = table.read(Path(run["folder"]) / f"{kind}.parquet", columns).to_pandas()
        frames.append(pd.DataFrame({key: [run[key]] * len(frame) for key in KEYS}).join(frame))
    return pd.concat(frames, ignore_index=True)


def table1(runs: Sequence[Run]) -> pd.DataFrame:
    """Mean and std over test examples of the maximal loss variation at every eps (paper, Table 1; std with ddof 0)."""
    rows = []
    for run in runs:
        frame = table.read(Path(run["folder"]) / "lossvar.parquet", ["eps", "variation"]).to_pandas()
        row = {key: run[key] for key in KEYS}
        for eps, variation in frame.groupby("eps")["variation"]:
            row[f"loss_variation_mean_eps{eps:g}"] = variation.astype("float64").mean()
            row[f"loss_variation_std_eps{eps:g}"] = variation.astype("float64").std(ddof=0)
        rows.append(row)
    return pd.DataFrame(rows)


def table3(runs: Sequence[Run]) -> pd.DataFrame:
    """Accuracies (percent), losses (nats), their gaps, and PGD accuracy (paper, Table 3)."""
    return gather(runs, "metrics", _TABLE3)


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Make one row per setting: {metric}_mean and {metric}_std over seeds (ddof 1, null for one seed), n_seeds."""
    metrics = [name for name in frame.columns if name not in KEYS]
    groups = frame.groupby(SETTING, dropna=False, sort=False)
    parts = {f"{name}_mean": groups[name].mean() for name in metrics}
    parts |= {f"{name}_std": groups[name].std(ddof=1) for name in metrics}
    order = [f"{name}_{statistic}" for name in metrics for statistic in ("mean", "std")]
    return pd.DataFrame({**parts, "n_seeds": groups.size()})[[*order, "n_seeds"]].reset_index()


def record(name: str, runs: Sequence[Run], *, folder: Path, study: str) -> None:
    """Write a table and its summary into folder, as Parquet and as CSV."""
    makers: dict[str, Callable[[Sequence[Run]], pd.DataFrame]] = {"table1": table1, "table3": table3}
    frame = makers[name](runs)
    for stem, content in ((name, frame), (f"{name}_summary", summarise(frame))):
        content = content.astype({"spectral_norm": "float64"})  # noqa: PLW2901 - all null is a float column too
        table.write_frame(
            folder / f"{stem}.parquet", pa.Table.from_pandas(content, preserve_index=False), {"study": study}
        )
        with table.atomic(folder / f"{stem}.csv") as temporary:
            content.to_csv(temporary, index=False)
