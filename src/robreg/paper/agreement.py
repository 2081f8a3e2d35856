"""How closely a study agrees with the paper's numbers, and in which perturbation space it agrees better."""

import pandas as pd

from robreg.paper.reference import MISPRINT

_GROUP = ["table", "dataset", "run_dataset"]
_CELL = [*_GROUP, "arch", "train_attack", "spectral_norm", "ar", "metric"]


def summarise_agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarise a comparison: one row per table, data set of the paper, data set of ours and perturbation space.

    frame: comparison.parquet. Further columns: n (how many numbers were compared), median_relative_difference (of
    |ours - paper| / |paper|, without suspected misprints and zeros in the paper), and nearest (whether the median is
    the smallest of the spaces; False if there is only one). If both spaces ran, only numbers that both have count.
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


def describe_closer_space(frame: pd.DataFrame) -> str:
    """Describe in which space the numbers are closer to the paper's, table by table; "" if only one space ran."""
    agreement = summarise_agreement(frame)
    sentences = []
    for (table, _, dataset), rows in agreement.groupby(_GROUP, sort=False):
        if rows["nearest"].any():
            ordered = rows.sort_values("median_relative_difference", kind="stable").to_dict("records")
            parts = [f"{row['space']} space {100 * row['median_relative_difference']:.0f} %" for row in ordered]
            name = table if table == "B.2" else f"Table {table}"
            sentences.append(f"{name}, {dataset}: {', '.join(parts)} (of {ordered[0]['n']} numbers).")
    return f"Median relative difference from the paper, closer space first. {' '.join(sentences)}" if sentences else ""
