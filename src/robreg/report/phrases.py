"""Short phrases that several parts of a report use."""

from collections.abc import Iterable, Sequence


def join_distinct(values: Iterable[str]) -> str:
    """Join the distinct values with commas, in their order."""
    return ", ".join(dict.fromkeys(values))


def format_range(counts: Sequence[int]) -> str:
    """Format the range of several numbers of seeds: "3", or "1 to 3"."""
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one number."""
    return sum(values) / len(values)


def join_words(words: Sequence[str]) -> str:
    """Join words as a sentence does: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def count_steps(count: int) -> str:
    """Return "1 step" or "10 steps"."""
    return "1 step" if count == 1 else f"{count} steps"


def format_fraction(share: float) -> str:
    """Format 0.25 as "1/4", and a number that is not 1/n as a decimal number."""
    return f"1/{round(1 / share)}" if share and 1 / share == round(1 / share) else f"{share:g}"
