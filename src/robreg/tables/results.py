"""Read the results of a run or of a study into pandas."""

from pathlib import Path
from typing import Any

import pandas as pd

from robreg.tables import parquet


def evaluation_row(attacks: pd.DataFrame) -> dict[str, Any]:
    """Return the row of attacks.parquet for the evaluation attack: the first one of PGD, on the test split.

    The other rows of PGD are for the radii in pixels at which every network is attacked (the setting pixel_radii).
    """
    rows = attacks[(attacks["attack"] == "pgd") & (attacks["split"] == "test")]
    return {str(name): value for name, value in rows.to_dict("records")[0].items()}


def read_results(source: str | Path, results: str | Path = "results") -> dict[str, pd.DataFrame]:
    """Read all tables of a run or of a study into a dictionary, by name.

    source: a run ("digits/ar8"), a study ("demo"), or any folder with such results; results: the folder to search for
    runs and studies. Accuracies are in percent, losses in nats, strengths and radii in 1/255; robreg.tables.schemas
    lists the columns.
    Raises FileNotFoundError if there is no such folder, or if it contains no table.

    >>> import robreg
    >>> tables = robreg.read("digits/ar8")
    >>> sorted(tables)
    ['margins', 'metrics']
    >>> tables["margins"].query("split == 'test'")["margin"].size
    40
    """
    places = [Path(results, source), Path(results, "studies", source), Path(source)]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        tried = ", ".join(map(str, places))
        raise FileNotFoundError(f"no results of {source}: none of {tried} is a folder; run the workflow first")
    files = sorted([*folder.glob("*.parquet"), *folder.glob("tables/*.parquet")])
    if not files:
        inside = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        fix = f"give one of the folders in it: {inside}" if inside else "run the workflow first"
        raise FileNotFoundError(f"{folder} holds no Parquet file; {fix}")
    return {file.stem: parquet.read(file).to_pandas() for file in files}
