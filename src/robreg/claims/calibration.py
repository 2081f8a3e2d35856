"""Judge networks of equal strength against each other: how often does chance alone decide a claim?

    python -m robreg.claims.calibration results/digits/ar16 results/digits/ar16-s1 ...

The folders are runs that differ in their seed alone. Some of them, drawn at random, are taken for networks of the lower
strength and others for networks of the higher one, many times. A 95 % interval should decide 5 % of the claims.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from robreg.claims.claim import ONE_SEED, SEVERAL_SEEDS
from robreg.claims.quantities import Network
from robreg.claims.registry import CLAIMS
from robreg.claims.verdicts import verdict

_DECIDED = (*SEVERAL_SEEDS[:2], *ONE_SEED[:2])


def decided_by_chance(folders: Sequence[Path], *, n_seeds: int, splits: int) -> pd.DataFrame:
    """Return the share of splits (percent) in which each claim about a change is decided, in the column decided.

    folders: runs of one setting that differ in their seed; n_seeds: the number of networks on each side of a split;
    splits: the number of random splits. Each claim has one row, in the order of the registry; the last row, "all
    together", is their mean. Claims whose statistic is not 0 between equal strengths are left out; a claim about
    spectra has no interval for one seed, and NaN. Raises ValueError if there are fewer than 2 n_seeds runs.
    """
    if len(folders) < 2 * n_seeds:
        raise ValueError(f"{2 * n_seeds} runs are needed to compare {n_seeds} with {n_seeds}, not {len(folders)}")
    networks = [Network("data", folder) for folder in folders]
    draw = np.random.default_rng(0)
    orders = [draw.permutation(len(networks))[: 2 * n_seeds].reshape(2, n_seeds) for _ in range(splits)]
    split_networks = [[{seed: networks[i] for seed, i in enumerate(side)} for side in order] for order in orders]
    rows = []
    for claim in CLAIMS:
        if claim.zero_if_equal and claim.general:
            outcomes = [claim.contrast(dict(enumerate(sides)), 0, 1) for sides in split_networks]
            effects = [outcome.effect for outcome in outcomes if outcome is not None]
            decided = 100 * float(np.mean([verdict(effect, claim.sign) in _DECIDED for effect in effects]))
            has_interval = any(effect.seeds or effect.images for effect in effects)
            rows.append({"claim": claim.id, "decided": decided if has_interval else math.nan})
    together = float(np.nanmean([row["decided"] for row in rows]))
    return pd.DataFrame([*rows, {"claim": "all together", "decided": together}])


def _main() -> Iterator[str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="runs that differ in their seed alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 3], help="networks on each side (default: 1 3)")
    parser.add_argument("--splits", type=int, default=200, help="random splits (default: 200)")
    given = parser.parse_args()
    missing = [str(folder) for folder in given.folders if not (folder / "margins.parquet").is_file()]
    if missing:
        parser.error(f"these are not folders of measured runs: {', '.join(missing)}")
    if len(given.folders) < 2 * max(given.seeds):
        parser.error(f"{2 * max(given.seeds)} runs are needed for --seeds {max(given.seeds)}, not {len(given.folders)}")
    tables = {
        f"{n} against {n}": decided_by_chance(given.folders, n_seeds=n, splits=given.splits).set_index("claim")
        for n in given.seeds
    }
    yield f"Decided, in percent of {given.splits} random splits of {len(given.folders)} networks of equal strength:"
    yield pd.concat({name: table["decided"] for name, table in tables.items()}, axis=1).round(1).to_string()


if __name__ == "__main__":
    for line in _main():
        print(line)
