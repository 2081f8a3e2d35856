"""Read the results of a run or of a study into pandas."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import pandas as pd

from robreg.runs.settings import with_present_names
from robreg.runs.variant import Variant
from robreg.tables import parquet
from robreg.tables.schemas import SCHEMAS

_SETTINGS = ("ar", "arch", "train_attack", "space", "spectral_norm", "seed")  # that identify a run


def evaluation_row(attacks: pd.DataFrame) -> dict[str, Any]:
    """Return the row of attacks.parquet for the evaluation attack: the first one of PGD, on the test split.

    The other rows of PGD are for the radii in pixels at which every network is attacked (the setting pixel_radii).
    """
    rows = attacks[(attacks["attack"] == "pgd") & (attacks["split"] == "test")]
    return {str(name): value for name, value in rows.to_dict("records")[0].items()}


@overload
def read_results(source: str | Path, *, results: str | Path = ...) -> dict[str, pd.DataFrame]: ...
@overload
def read_results(source: str | Path, table: str, *, results: str | Path = ...) -> pd.DataFrame: ...
def read_results(
    source: str | Path, table: str | None = None, *, results: str | Path = "results"
) -> dict[str, pd.DataFrame] | pd.DataFrame:
    """Read all tables of a run or of a study into a dictionary, by name; or one table of all runs of a study.

    source: a run ("digits/ar8"), a study ("demo"), or any folder with such results; table: a table of runs, such as
    "margins", which is returned as one frame, by growing ar. Its first columns are dataset, variant, arch,
    train_attack, space, spectral_norm (NaN for no bound), ar and seed of the run; a column of the table that has one of
    these names is called, for example, attacks_seed. results: the folder to search for runs and studies.
    Accuracies are in percent, losses in nats, strengths and radii in 1/255; robreg.tables.schemas lists the columns.
    Raises FileNotFoundError if there is no such folder, or if it contains no table, and ValueError for an unknown table
    and for a file that is damaged.

    >>> import robreg
    >>> tables = robreg.read("digits/ar8")
    >>> sorted(tables)
    ['history', 'margins', 'metrics']
    >>> margins = robreg.read("digits/ar8", "margins")
    >>> margins.query("split == 'test'").groupby(["ar", "seed"])["margin"].size()
    ar  seed
    8   0       40
    Name: margin, dtype: int64
    """
    folder = _find(source, Path(results))
    if table is None:
        return {file.stem: parquet.read(file).to_pandas() for file in _tables(folder)}
    if table not in SCHEMAS:
        raise ValueError(f"runs have no table {table!r}; they have {', '.join(SCHEMAS)}")
    frame = pd.concat([_with_identity(run, table) for run in _runs(folder)])
    return frame.sort_values(["dataset", "arch", "ar", "seed"], kind="stable", ignore_index=True)


def _find(source: str | Path, results: Path) -> Path:
    places = [results / source, results / "studies" / source, Path(source)]
    if "/" not in str(source):  # a run's name has the folder of its data set, which a study may share its name with
        places[:2] = places[1::-1]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        tried = ", ".join(map(str, places))
        raise FileNotFoundError(
            f"no results of {source}: none of {tried} is a folder in {Path.cwd()}; run the workflow first, or give the "
            "folder of its results, as in results='/path/to/results'"
        )
    return folder


def _tables(folder: Path) -> Iterable[Path]:
    """List the tables of a run or of a study. Raises FileNotFoundError if there is none."""
    if files := sorted([*folder.glob("*.parquet"), *folder.glob("tables/*.parquet")]):
        return files
    inside = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    fix = f"give one of the folders in it: {inside}" if inside else "run the workflow first"
    raise FileNotFoundError(f"{folder} holds no Parquet file; {fix}")


def _runs(folder: Path) -> list[Path]:
    """List the folders of the runs of a study; the folder itself if it is that of a run.

    A study's audit names the files of its runs, which lie beside `studies`; a study that is kept elsewhere has its
    runs in its folder "runs".
    """
    if (folder / "history.parquet").exists():
        return [folder]
    if kept := sorted(path.parent for path in folder.glob("runs/*/*/history.parquet")):
        return kept
    if audited := _audited(folder):
        return audited
    raise FileNotFoundError(
        f"{folder} is no run with a history.parquet, and no study with an audit.parquet; run the workflow first"
    )


def _audited(study: Path) -> list[Path]:
    """List the folders of the runs that a study's audit names, by their checks or, without these, their history."""
    audit = study / "audit.parquet"
    sealed = parquet.read_metadata(audit).get("sealed") if audit.exists() else None
    files = [Path(name) for name in sealed] if isinstance(sealed, dict) else []
    of_runs = [file for file in files if file.name in ("checks.parquet", "history.parquet") and ".." not in file.parts]
    runs = dict.fromkeys(file.parts[-3:-1] for file in of_runs)
    return [study.resolve().parents[1].joinpath(*run) for run in runs]


def _with_identity(run: Path, table: str) -> pd.DataFrame:
    """Read a table of a run, with the columns that identify the run in front."""
    frame, identity = parquet.read(run / f"{table}.parquet").to_pandas(), _identity(run)
    columns = {key: [value] * len(frame) for key, value in identity.items()}
    own = frame.rename(columns={key: f"{table}_{key}" for key in identity})
    return pd.DataFrame(columns).astype({"spectral_norm": "float64"}).join(own)


def _identity(run: Path) -> dict[str, Any]:
    """Return what distinguishes a run from others, from the settings that its history states."""
    history, attacks = run / "history.parquet", run / "attacks.parquet"
    found = with_present_names(parquet.read_settings(history))
    if missing := [key for key in ("dataset", "variant", *_SETTINGS) if key not in found]:
        raise ValueError(f"{history} does not state {', '.join(missing)} of its run; train it again")
    trained = found["train_attack"] or {}
    variant = Variant(
        fgsm=trained.get("attack") == "fgsm",
        clean=trained.get("clean_share", 0.0),
        bound=found["spectral_norm"],
        **{key: found[key] for key in ("ar", "arch", "space", "seed")},
    )
    if attacks.exists():
        evaluated = evaluation_row(parquet.read(attacks).to_pandas())["space"]
        variant = replace(variant, evaluation_space=None if evaluated == variant.space else evaluated)
    names = {"dataset": found["dataset"], "variant": found["variant"], "arch": variant.arch}
    setting = {"train_attack": variant.train_attack, "space": variant.spaces, "spectral_norm": variant.bound}
    return {**names, **setting, "ar": variant.ar, "seed": variant.seed}
