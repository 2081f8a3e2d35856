"""The numbers that the paper prints (Tables 1 to 6 and appendix B.2), with notes on those that look wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

FILE = Path(__file__).with_name("reference.csv")
KEY_COLUMNS = ["table", "dataset", "arch", "train_attack", "space", "spectral_norm", "ar", "ar_high", "metric"]
MISPRINT = "suspected misprint"
_TYPES = {"table": "str", "spectral_norm": "float64", "ar": "int64", "ar_high": "float64", "value": "float64"}
_NOTES: tuple[tuple[Mapping[str, Any], str | None, str], ...] = (  # which cells, their status or None, and the note
    (
        {"table": "B.2", "dataset": "c100", "metric": "svstd_increase_sum"},
        MISPRINT,
        "repeats CIFAR-10's sum and contradicts its own mean: 0.1103 times 16 layers is 1.76",
    ),
    (
        {"dataset": "c10", "arch": "resnet56", "metric": "pgd_acc", "ar": 4, "value": 65.92},
        MISPRINT,
        "larger than at AR 8 (65.24), whereas every similar network has 55 to 58 at AR 4: 57.93, 56.83 and 54.91 with "
        "a bound of 1, 3 and 5 on the spectral norm, 58.02 with ResNet-110; and beside the loss variation of Table 1, "
        "only about 57.9 agrees with AR 8 and 16 on CIFAR-10",
    ),
    *(
        (
            {"metric": "loss_gap", **cell},
            None,
            "differs by 0.001 from the printed losses: rounding",
        )
        for cell in (
            {"table": "4", "arch": "resnet110", "ar": 8},
            {"table": "6", "spectral_norm": 1.0, "ar": 16},
            {"table": "6", "spectral_norm": 5.0, "ar": 4},
        )
    ),
)


def read_reference(file: Path = FILE) -> pd.DataFrame:
    """Read the paper's numbers, one row each: PLACE, paper (the value), status (None or MISPRINT) and note.

    Accuracies and error gaps are in percent, losses in nats, strengths in 1/255; a space that the paper does not state
    is null.
    Raises ValueError if a column, a value or a number that has a note is missing, or if a number is listed twice.
    """
    frame = pd.read_csv(file, dtype=_TYPES)
    if list(frame) != [*KEY_COLUMNS, "value"]:
        raise ValueError(
            f"{file}: the columns are {list(frame)}, but must be {[*KEY_COLUMNS, 'value']}; restore the file"
        )
    filled = [name for name in frame if name not in ("space", "spectral_norm", "ar_high")]
    if frame[filled].isna().any(axis=None) or frame.duplicated(KEY_COLUMNS).any():
        raise ValueError(f"{file}: a number is missing or listed twice; restore the file")
    frame["status"], frame["note"] = None, ""
    for cell, status, note in _NOTES:
        chosen = pd.concat([frame[key] == value for key, value in cell.items()], axis=1).all(axis=1)
        if not chosen.any():
            raise ValueError(f"{file}: the number of {dict(cell)}, which has a note, is missing; restore the file")
        frame.loc[chosen, "note"] = note
        frame.loc[chosen, "status"] = status
    return frame.rename(columns={"value": "paper"})
