"""Draw gaps between test and training set, and what they consist of: Figures 3, 6, 7 and 9.

Losses and errors have panels of their own. On two axes of one panel, their curves would often lie on each other.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from robreg.figures import grid, style
from robreg.figures.grid import Shared
from robreg.figures.lone import Panel, choose_panels, share_panels
from robreg.figures.metric_panels import metric_section
from robreg.figures.series import choose_looks
from robreg.figures.style import Look
from robreg.runs.catalogue import Run
from robreg.runs.groups import group_by_setting

_DASHED = (0, (4, 2))
LOSS_GAP = {"loss_gap": Look("loss gap", style.LOSS, "solid", "D")}
ERROR_GAP = {"acc_gap": Look("error gap", style.ERROR, _DASHED, "^")}
LOSS = {
    "train_loss": Look("train loss", style.LOSS, _DASHED, "s", filled=False),
    "test_loss": Look("test loss", style.LOSS),
}
ERROR = {
    "train_error": Look("train error", style.ERROR, _DASHED, "D", filled=False),
    "test_error": Look("test error", style.ERROR, "solid", "^"),
}


def fig3(runs: Sequence[Run]) -> Figure:
    """Draw (a) loss and error gaps, (b) train and test losses and errors, against AR."""
    return _draw_gaps(choose_panels(runs), "none")


def fig6(runs: Sequence[Run]) -> Figure:
    """Draw Figure 3 for every bound on the layers, so that complexity falls from the first panel to the last."""
    settings = sorted(group_by_setting(runs).items(), key=lambda item: (_network_key(item[1][0]), -_bound(item[1][0])))
    named = {name if _bound(members[0]) < np.inf else f"{name}, no bound": members for name, members in settings}
    return _draw_gaps(share_panels(named), "all")


def fig7(runs: Sequence[Run]) -> Figure:
    """Draw Figure 3 with one scale for all architectures of a data set."""
    return _draw_gaps(choose_panels(runs), "data set")


def fig9(runs: Sequence[Run]) -> Figure:
    """Draw (a) the loss gap and (b) train and test errors, against AR."""
    panels = choose_panels(runs)
    guests = choose_looks(panels).guests
    sections = [
        metric_section("(a) loss gap: test \N{MINUS SIGN} train", LOSS_GAP, "loss gap (nats)", guests=guests),
        metric_section("(b) error on train and test", ERROR, "error (%)", guests=guests),
    ]
    return grid.arrange(panels, [sections], list(guests.values()))[0]


def _draw_gaps(panels: Sequence[Panel], shared: Shared) -> Figure:
    """Draw (a) gaps and (b) their parts, first of losses, then of errors."""
    guests = choose_looks(panels).guests
    minus = "test \N{MINUS SIGN} train"
    rows = (
        (
            (f"(a) loss gap: {minus}", LOSS_GAP, "loss gap (nats)"),
            (f"(a) error gap: {minus}", ERROR_GAP, "error gap (% points)"),
        ),
        (("(b) loss on train and test", LOSS, "loss (nats)"), ("(b) error on train and test", ERROR, "error (%)")),
    )
    sections = [[metric_section(*part, guests=guests, shared=shared) for part in row] for row in rows]
    return grid.arrange(panels, sections, list(guests.values()))[0]


def _network_key(run: Run) -> tuple[str, str, str]:
    return run["dataset"], run["arch"], run["space"]


def _bound(run: Run) -> float:
    return np.inf if run["spectral_norm"] is None else float(run["spectral_norm"])
