"""Decide which settings of a figure have a panel of their own, and which are drawn in the panel of another one.

A setting with a single strength, such as one network in another perturbation space, would leave its panel almost empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robreg.runs.catalogue import Run
from robreg.runs.groups import group_by_setting, list_strengths

_DEFAULTS = {"train_attack": "PGD", "spectral_norm": "no bound", "space": "pixel space"}  # that names leave out
_COMPARED = tuple(_DEFAULTS)  # the fewer of these differ, the better a panel suits


@dataclass(frozen=True)
class Panel:
    """What one panel shows: a setting, its runs, and the runs of settings that are single points in it.

    guests: by the label of such a setting, its strength and what distinguishes it: "AR 16, normalised space".
    """

    name: str
    runs: Sequence[Run]
    guests: Mapping[str, Sequence[Run]] = field(default_factory=dict)

    @property
    def everyone(self) -> list[Run]:
        """The runs of the panel with those of its guests."""
        return [*self.runs, *(run for members in self.guests.values() for run in members)]


def choose_panels(runs: Sequence[Run]) -> list[Panel]:
    """Give every setting a panel, except that a setting of one strength joins one of the same network and data set."""
    return share_panels(group_by_setting(runs))


def share_panels(settings: Mapping[str, Sequence[Run]]) -> list[Panel]:
    """Do as choose_panels, for settings that are grouped already; panels keep their order."""
    guests: dict[str, dict[str, Sequence[Run]]] = {}
    alone = set[str]()
    for name, members in settings.items():
        if len(list_strengths(members)) == 1 and (host := _find_host(members, settings)):
            guests.setdefault(host, {})[_label(name, members, host, settings[host])] = members
            alone.add(name)
    return [Panel(name, members, guests.get(name, {})) for name, members in settings.items() if name not in alone]


def strengths_of(panels: Sequence[Panel]) -> list[int]:
    """List the strengths of the settings that have a panel, which are those in a legend of strengths."""
    return list_strengths([run for panel in panels for run in panel.runs])


def _label(name: str, members: Sequence[Run], host: str, others: Sequence[Run]) -> str:
    """Return the only strength of a setting, and what distinguishes it from its host.

    These are the words of its name that the name of its host does not have, or else what the host's has and it has not.
    """
    (strength,) = list_strengths(members)
    words = [word for word in name.split(", ") if word not in host.split(", ")]
    one, other = members[0], _adversarial(others)
    words = words or [_DEFAULTS[key] for key in _COMPARED if one["ar"] and one[key] != other[key]]
    return ", ".join([f"AR {strength}", *words])


def _find_host(members: Sequence[Run], settings: Mapping[str, Sequence[Run]]) -> str | None:
    """Return the name of the most similar setting of the same data set and network that has several strengths."""
    one = members[0]
    hosts = {name: _adversarial(runs) for name, runs in settings.items() if len(list_strengths(runs)) > 1}
    alike = [name for name, run in hosts.items() if (run["dataset"], run["arch"]) == (one["dataset"], one["arch"])]
    return min(alike, key=lambda name: _count_differences(hosts[name], one), default=None)


def _adversarial(runs: Sequence[Run]) -> Run:
    """Return a run that was trained with the attack of its setting, which standard training has none of."""
    return max(runs, key=lambda run: run["ar"])


def _count_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    return sum(one[key] != other[key] for key in _COMPARED)
