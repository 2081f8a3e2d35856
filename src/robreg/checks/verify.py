"""Measure a network again from its checkpoint, and compare the result with the tables that are there.

`make verify RUN=digits/ar8` runs this. A checkpoint decides its tables, so whoever receives results, and trusts the
checkpoint alone, can know them to be right.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from robreg.tables import parquet

_TOLERANCE = 1e-3  # relative: what another processor or number of threads may change
_SMALL = 1e-3  # of a column's largest value, below which differences are relative to this instead of the value
_SHARE = 0.005  # of the cells that are not floats, such as predictions of examples at a decision boundary
_NOT_MEASURED = ("history", "checks")
_RULES = ("prepare", "margins", "apgd", "attacks", "masking", "lossvar", "sv", "spread", "theory", "metrics", "checks")


def compare(received: pd.DataFrame, measured: pd.DataFrame) -> tuple[float, float]:
    """Compare a table that was received with the one that was measured again.

    Returns the largest relative difference of two floats, and the share of the other cells that differ. Both are inf
    for tables of other columns or another number of rows.
    """
    if list(received.columns) != list(measured.columns) or len(received) != len(measured):
        return np.inf, np.inf
    difference, unequal, cells = 0.0, 0, 0
    for name in received.columns:
        one, other = received[name], measured[name]
        if pd.api.types.is_float_dtype(one) and pd.api.types.is_float_dtype(other):
            size = other.abs() + max(_SMALL * other.abs().max(), np.finfo(float).tiny)
            gap = float(((one - other).abs() / size).fillna(0.0).max())
            difference = max(difference, gap if (one.isna() == other.isna()).all() else np.inf)
        else:
            unequal, cells = unequal + int((one.astype(str) != other.astype(str)).sum()), cells + len(one)
    return difference, unequal / max(cells, 1)


def verify(run: str, *, cores: int) -> Iterator[tuple[str, float, float]]:
    """Measure a run again; yield each table's name and what compare returns. run: {dataset}/{variant}.

    The tables that are measured replace those that were there, which are first copied to the folder received beside
    them. Raises FileNotFoundError if there is no checkpoint or no table, and CalledProcessError if a measure fails.
    """
    folder = Path("results", run)
    tables = sorted(path for path in folder.glob("*.parquet") if path.stem not in _NOT_MEASURED)
    if not tables or not (folder / "checkpoint.pt").exists():
        raise FileNotFoundError(f"{folder} has no checkpoint.pt or no tables to compare; name a run, as digits/ar8")
    received = Path(tempfile.mkdtemp(prefix="received-", dir=folder))
    for path in tables:
        shutil.copy2(path, received)
    files = [str(path) for path in tables]
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--rerun-triggers", "mtime", "--quiet", "all"]
    command += ["--allowed-rules", *_RULES, "--forcerun", *files, "--", *files]
    subprocess.run(command, check=True)
    for path in tables:
        yield path.name, *compare(*(parquet.read(each).to_pandas() for each in (received / path.name, path)))


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="{dataset}/{variant}, such as digits/ar8")
    parser.add_argument("--cores", type=int, default=1, help="CPU cores (default: 1)")
    given = parser.parse_args()
    try:
        found = list(verify(given.run, cores=given.cores))
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        parser.error(str(error))
    wrong = [name for name, difference, share in found if not (difference <= _TOLERANCE and share <= _SHARE)]
    for name, difference, share in found:
        equal = "equal in every value" if difference == share == 0 else "equal but for rounding"
        word = "NOT EQUAL" if name in wrong else equal
        print(f"{name}: {word} (floats differ by {difference:.1e}, other cells in {share:.2%})")
    print(
        f"{given.run}: {'these tables are not those of the checkpoint: ' + ', '.join(wrong) if wrong else 'verified'}"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(_main())
