"""How near a study comes to the paper's numbers, and with which reading of its perturbations."""

import pandas as pd

from robreg.paper.reference import MISPRINT

_GROUP = ["table", "dataset", "run_dataset"]
_CELL = [*_GROUP, "arch", "train_attack", "spectral_norm", "ar", "metric"]


def matches(frame: pd.DataFrame) -> pd.DataFrame:
    """Sum a comparison up: one row per table, data set of the paper, data set of ours and perturbation space.

    frame: comparison.parquet. Columns beyond those: n (numbers compared), median_relative_difference (of
    |ours - paper| / |paper|; without suspected misprints, and where the paper has 0), nearest (the smaller of the two
    spaces; False where there is one only). Where both spaces ran, only numbers that both have count.
    """
    usable = frame[frame["ours_mean"].notna() & (frame["status"] != MISPRINT) & (frame["paper"] != 0)]
    usable = usable.assign(relative=usable["difference"].astype("float64").abs() / usable["paper"].abs())
    spaces = usable.groupby(_GROUP)["space"].transform("nunique")
    shared = usable.groupby(_CELL, dropna=False)["space"].transform("nunique") == spaces
    groups = usable[shared].groupby([*_GROUP, "space"], sort=False)["relative"]
    found = groups.agg(n="size", median_relative_difference="median").reset_index()
    best = found.groupby(_GROUP)["median_relative_difference"].transform("min")
    choice = found.groupby(_GROUP)["space"].transform("size") > 1
    return found.assign(nearest=choice & (found["median_relative_difference"] == best))


def nearer(frame: pd.DataFrame) -> str:
    """Say which space comes nearer to the paper's numbers, table by table; "" where only one ran."""
    found = matches(frame)
    said = []
    for (table, _, dataset), rows in found.groupby(_GROUP, sort=False):
        if rows["nearest"].any():
            ordered = rows.sort_values("median_relative_difference", kind="stable").to_dict("records")
            parts = [f"{row['space']} space {100 * row['median_relative_difference']:.0f} %" for row in ordered]
            name = table if table == "B.2" else f"Table {table}"
            said.append(f"{name}, {dataset}: {', '.join(parts)} (of {ordered[0]['n']} numbers).")
    return f"Median difference from the paper, the nearer space first. {' '.join(said)}" if said else ""
