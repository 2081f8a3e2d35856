"""Choose a subset of a split that keeps the proportions of its classes."""

import numpy as np

from robreg.data.source import Labels


def stratified_subset(labels: Labels, n: int, seed: int) -> Labels:
    """Choose n rows at random in the proportions of the classes, by largest remainder (the lower class wins ties).

    labels: (N,). Returns sorted row numbers (n,). Raises ValueError unless 1 <= n <= N.
    """
    if not 1 <= n <= len(labels):
        raise ValueError(f"cannot choose {n} of {len(labels)} rows")
    classes, counts = np.unique(labels, return_counts=True)
    share, remainder = np.divmod(n * counts, len(labels))
    share[np.argsort(-remainder, kind="stable")[: n - share.sum()]] += 1
    rng = np.random.RandomState(seed)  # numpy guarantees that this stream never changes, unlike a Generator's
    rows = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, share, strict=True)]
    return np.sort(np.concatenate(rows)).astype(np.int64)
