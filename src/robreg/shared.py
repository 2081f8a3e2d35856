"""Settings of several runs side by side: those that they share, and those by which they differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAMED = ("dataset", "variant")  # what a run's name says


@dataclass(frozen=True)
class Shared:
    """Settings as text. common: by dotted key; differing: keys; by_run: a run's values of them, by its name."""

    common: Mapping[str, str]
    differing: tuple[str, ...]
    by_run: Mapping[str, tuple[str, ...]]


def shared(settings: Mapping[str, Mapping[str, Any]]) -> Shared:
    """Compare resolved settings, given by run."""
    flat = {run: _flat({key: one[key] for key in one if key not in _NAMED}) for run, one in settings.items()}
    keys = list(dict.fromkeys(key for one in flat.values() for key in one))
    keys = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]  # none beside its parts
    texts = {key: [_text(one.get(key)) for one in flat.values()] for key in keys}
    differing = tuple(key for key in keys if len(set(texts[key])) > 1)
    return Shared(
        common={key: texts[key][0] for key in keys if key not in differing},
        differing=differing,
        by_run={run: tuple(texts[key][index] for key in differing) for index, run in enumerate(flat)},
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "none" if value is None else str(value)


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Turn nested settings into one level with dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return leaves
