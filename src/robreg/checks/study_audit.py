"""Check a study's tables and claims: compute them again from the files of its runs, and compare."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from robreg.checks.attacked_images import check_images
from robreg.checks.invariants import Row, count_violations, raise_if_violated, same_run, with_files
from robreg.checks.run_checks import check_folder
from robreg.checks.seals import BASIC, CHECKED, CHECKPOINT, refuse_changed, seal
from robreg.claims import verdicts
from robreg.claims.claim import NOT_RUN, ONE_SEED, SEVERAL_SEEDS
from robreg.claims.registry import CLAIMS
from robreg.runs.catalogue import FIGURES, TABLES, Run, select_runs
from robreg.runs.needs import CLAIMED, Shown
from robreg.tables import parquet, schemas, study_tables
from robreg.tables.files import open_regular

_SIGNS = {claim.id: claim.sign for claim in CLAIMS}
_ONE_ROW = ("metrics", "theory")  # tables with one row per run, whose values a study's tables copy


def record(
    name: str, runs: Sequence[Run], shown: Shown, *, compare: Sequence[int], folder: Path, judged: bool = True
) -> None:
    """Write audit.parquet of a study: its own checks and those of all its runs; raise ValueError if a check fails.

    runs: one with the key "checks" (needs.check_conditions) has fewer tables than the rule checks compares, and those
    are checked here; compare: the two strengths (1/255); folder: the study's; judged: whether it judges claims.
    """
    for run in runs:
        refuse_changed_run(run)
        kinds = _kinds(run, runs, shown, judged=judged)
        raise_if_violated([_check_same_run(Path(run["folder"]), kinds)], Path(run["folder"]))
    names = filter(_is_there, sealed_files(runs, shown, folder, judged=judged))
    sealed = seal(Path(), names)  # before they are read, so that no later change is missed
    members = {table: select_runs(table, runs, only) for table, only in shown.items() if table in TABLES}
    own = [row for table, chosen in members.items() for row in tables(table, chosen, compare, folder)]
    own += claims(runs, compare, folder) if judged else []
    raise_if_violated(own, folder)
    pictured = select_runs("examples", runs, shown["examples"]) if "examples" in shown else []
    frames = [pd.DataFrame(own).assign(place=str(folder)), *(_checks_of(run) for run in runs)]
    frames += [_checks_of_images(run) for run in pictured]
    found = pd.concat(frames, ignore_index=True)[["place", *schemas.SCHEMAS["checks"].names]]
    meta = {"study": name, "sealed": sealed}
    parquet.write_frame(folder / "audit.parquet", pa.Table.from_pandas(found, preserve_index=False), meta)


def _checks_of(run: Run) -> pd.DataFrame:
    """Return the rows of a run's checks, from its table of checks or made from its other tables."""
    folder = Path(run["folder"])
    if "checks" not in run:
        return parquet.read(folder / "checks.parquet").to_pandas().assign(place=run["folder"])
    return pd.DataFrame(check_folder(folder, BASIC, **run["checks"])[0]).assign(place=run["folder"])


def _checks_of_images(run: Run) -> pd.DataFrame:
    """Return the rows of the checks of a run's attacked images; raise ValueError if one fails."""
    rows = check_images(Path(run["folder"]))
    raise_if_violated(rows, Path(run["folder"]))
    return pd.DataFrame(rows).assign(place=run["folder"])


def sealed_files(runs: Sequence[Run], shown: Shown, folder: Path, *, judged: bool = True) -> list[str]:
    """List the files that an audit seals: all that a study shows, and the files of its runs that this is made from."""
    names = [
        f"{run['folder']}/{kind}.parquet" for run in runs for kind in sorted(_kinds(run, runs, shown, judged=judged))
    ]
    names += [f"{run['folder']}/{CHECKPOINT}" for run in runs if "checks" in run]
    names += [f"data/prepared/{dataset}/meta.json" for dataset in sorted({run["dataset"] for run in runs})]
    ends = [f"{stem}{end}" for stem in ("claims", "comparison") if judged for end in (".parquet", ".csv")]
    for item in [*shown, *(["comparison"] if judged else [])]:
        made = (".parquet", ".csv", "_summary.parquet", "_summary.csv") if item in TABLES else (".svg", ".png")
        ends += [f"{'tables' if item in TABLES else 'figures'}/{item}{end}" for end in made]
    return names + [str(folder / end) for end in ends]


def _is_there(name: str) -> bool:
    """Return whether a file must be sealed; results may be passed on without their networks."""
    return Path(name).name != CHECKPOINT or Path(name).exists()


def _kinds(run: Run, runs: Sequence[Run], shown: Shown, *, judged: bool) -> set[str]:
    """Return the tables of a run that a study is made from."""
    items = [{**FIGURES, **TABLES}[item] for item, only in shown.items() if run in select_runs(item, runs, only)]
    always = BASIC if "checks" in run else ("checks",)
    return {need for item in items for need in item.needs} | {*(CLAIMED if judged else ()), *always}


def refuse_changed_run(run: Run) -> None:
    """Raise ValueError if a file of a run changed after checks.parquet was made from it, or is not sealed there.

    A run whose tables the audit checks itself has no such file.
    """
    if "checks" not in run:
        folder = Path(run["folder"])
        refuse_changed(folder, [*(f"{kind}.parquet" for kind in CHECKED), CHECKPOINT], folder / "checks.parquet")


def refuse_changed_study(runs: Sequence[Run], shown: Shown, audit: Path, *, judged: bool = True) -> None:
    """Raise ValueError if a file of a study or of its runs changed after its audit or its checks were made from it."""
    for run in runs:
        refuse_changed_run(run)
    refuse_changed(Path(), sealed_files(runs, shown, audit.parent, judged=judged), audit)


def _check_same_run(folder: Path, kinds: set[str]) -> Row:
    files = [f"{kind}.parquet" for kind in sorted(kinds)]
    return same_run({file: parquet.read_metadata(folder / file) for file in files}, folder)


def tables(name: str, runs: Sequence[Run], compare: Sequence[int], folder: Path) -> Iterator[Row]:
    """Check one table against the files of its runs, its summary against its rows, and its CSV files against both."""
    path, both = Path(f"tables/{name}.parquet"), Path(f"tables/{name}_summary.parquet")
    frame, summary = (parquet.read(folder / each).to_pandas() for each in (path, both))
    again = study_tables.compose(name, runs, compare)
    row = count_violations(
        f"{name}_cells", f"cells of {name} other than when it is made again", count_differing_cells(frame, again)
    )
    yield from with_files([row], str(path))
    if list(frame.columns) != list(again.columns):
        return  # cells cannot be looked up by column
    row = count_violations(
        f"{name}_files", f"cells of {name} other than in the files of its runs", _count_untraced(frame, runs)
    )
    yield from with_files([row], str(path))
    row = count_violations(
        f"{name}_summary",
        f"means and stds over seeds of {name} other than of its rows",
        _count_wrong_summaries(frame, summary),
    )
    yield from with_files([row], str(path), str(both))
    for file, made in ((path, frame), (both, summary)):
        wrong = count_differing_cells(made, _read_csv(folder / file, made))
        row = count_violations(f"{file.stem}_csv", f"cells of {file.stem}.csv other than in {file.name}", wrong)
        yield from with_files([row], str(file), str(file.with_suffix(".csv")))


def claims(runs: Sequence[Run], compare: Sequence[int], folder: Path) -> Iterator[Row]:
    """Judge the claims again from the runs' files and compare; check verdicts against intervals, and the CSV file."""
    found = parquet.read(folder / "claims.parquet").to_pandas()
    again = pa.Table.from_pylist(verdicts.judge_all(verdicts.claim_settings(runs), *compare), verdicts.SCHEMA)
    rows = [
        count_violations(
            "claims_cells", "cells of claims other than judged again", count_differing_cells(found, again.to_pandas())
        ),
        count_violations(
            "claims_verdict",
            "claims whose verdict does not follow from their interval and their number of seeds",
            [not _has_its_verdict(row) for row in found.to_dict("records")],
        ),
    ]
    yield from with_files(rows, "claims.parquet")
    wrong = count_differing_cells(found, _read_csv(folder / "claims.parquet", found))
    row = count_violations("claims_csv", "cells of claims.csv other than in claims.parquet", wrong)
    yield from with_files([row], "claims.parquet", "claims.csv")


def _has_its_verdict(row: Mapping[Any, Any]) -> bool:
    """Return whether the verdict of a row of claims.parquet follows from its interval and its number of seeds."""
    if row["verdict"] == NOT_RUN:
        return bool(pd.isna(row["effect"]))
    words = SEVERAL_SEEDS if row["n_seeds"] > 1 else ONE_SEED
    ends = (row["ci_low"], row["ci_high"])
    if row["n_seeds"] == 1 and pd.isna(row["se_images"]):  # known exactly for one seed
        ends = (row["effect"], row["effect"])
    low, high = sorted(_SIGNS[row["id"]] * end for end in ends)
    return bool(row["verdict"] == words[0 if low > 0 else 1 if high < 0 else 2])


def count_differing_cells(one: pd.DataFrame, other: pd.DataFrame) -> int:
    """Count the cells that differ; two missing values are equal.

    If the frames have different columns or numbers of rows, all cells of the larger frame count.
    """
    if list(one.columns) != list(other.columns) or len(one) != len(other):
        return max(one.size, other.size)
    return sum(int((~_equal_cells(one[key], other[key])).sum()) for key in one.columns)


def _read_csv(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Read the CSV file of a table; one that is larger than the table's text can be has no columns."""
    limit = 2 * len(table.to_csv(index=False).encode())
    with open_regular(path.with_suffix(".csv")) as file:
        content = file.read(limit + 1)
    # Exact since pandas 3.1: every float is read back as it was.
    return pd.read_csv(io.BytesIO(content)) if len(content) <= limit else pd.DataFrame()


def _count_untraced(frame: pd.DataFrame, runs: Sequence[Run]) -> int:
    """Count the cells that differ from the metrics or theory of the row's run, in the columns that both have."""
    folders = {_run_key(run): Path(run["folder"]) for run in runs}
    count = 0
    for kind in _ONE_ROW:
        columns = [name for name in frame.columns if name in schemas.SCHEMAS[kind].names]
        for line in frame.to_dict("records") if columns else ():
            if folder := folders.get(_run_key(line)):
                own = parquet.read(folder / f"{kind}.parquet", columns).to_pandas()
                count += count_differing_cells(own, pd.DataFrame([line])[columns])
            else:
                count += len(columns)
    return count


def _run_key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(row[key]) else row[key] for key in study_tables.KEYS)


def _equal_cells(one: pd.Series, other: pd.Series) -> np.ndarray:
    both = one.isna().to_numpy() & other.isna().to_numpy()
    if pd.api.types.is_numeric_dtype(one) or pd.api.types.is_numeric_dtype(other):
        numbers = [pd.to_numeric(side, errors="coerce").to_numpy("float64", na_value=np.nan) for side in (one, other)]
        return both | (numbers[0] == numbers[1])
    return both | (one.astype(str).to_numpy() == other.astype(str).to_numpy())


def _count_wrong_summaries(frame: pd.DataFrame, summary: pd.DataFrame) -> int:
    """Count the means, stds and numbers of seeds in a summary that do not follow from the rows of frame."""
    if list(summary.columns) != list(study_tables.summarise(frame).columns):
        return summary.size
    keys = [key for key in frame.columns if key in summary.columns]
    metrics = [key.removesuffix("_mean") for key in summary.columns if key.endswith("_mean")]
    count = abs(int(summary["n_seeds"].sum()) - len(frame))
    for line in summary.to_dict("records"):
        rows = frame[
            np.logical_and.reduce([_equal_cells(frame[key], pd.Series([line[key]] * len(frame))) for key in keys])
        ]
        count += int(line["n_seeds"] != len(rows))
        for name in metrics:
            values = rows[name].astype("float64").to_numpy(na_value=np.nan)
            mean = values.mean() if len(values) else np.nan  # NaN if one of the seeds has no value
            std = values.std(ddof=1) if len(values) > 1 else np.nan
            count += sum(
                _values_differ(line[f"{name}_{part}"], value) for part, value in (("mean", mean), ("std", std))
            )
    return count


def _values_differ(found: Any, expected: float) -> bool:  # noqa: ANN401 - a cell of any type
    if pd.isna(found) or np.isnan(expected):
        return bool(pd.isna(found)) != bool(np.isnan(expected))
    return not np.isclose(found, expected, rtol=1e-9, atol=1e-9)
