"""The series of a panel: one for every strength of its setting, and one for every guest; each with its look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robreg.figures import style
from robreg.figures.lone import Panel, strengths_of
from robreg.figures.style import Look
from robreg.runs.catalogue import Run

Series = Sequence[tuple[Look, Sequence[Run]]]  # the runs of a series differ only in their seed


@dataclass(frozen=True)
class Looks:
    """The looks of a figure's series: of strengths (1/255), and of guests by their label."""

    strengths: Mapping[int, Look]
    guests: Mapping[str, Look]

    @property
    def every(self) -> list[Look]:
        """All looks, in the order of a legend."""
        return [*self.strengths.values(), *self.guests.values()]

    def series(self, panel: Panel) -> Series:
        """Return the series of a panel; strengths that it does not have are left out."""
        own = [(look, [run for run in panel.runs if run["ar"] == ar]) for ar, look in self.strengths.items()]
        guests = [(self.guests[label], members) for label, members in panel.guests.items()]
        return [(look, runs) for look, runs in [*own, *guests] if runs]


def choose_looks(panels: Sequence[Panel]) -> Looks:
    """Choose the looks of all series of a figure."""
    guests = list(dict.fromkeys(label for panel in panels for label in panel.guests))
    return Looks(style.by_strength(strengths_of(panels)), style.by_guest(guests))
