"""Radii in normalised space come from what the tables of a run state."""

import pyarrow as pa
import pytest

from robreg.figures.strength_axis import pixels_per_unit
from robreg.tables import parquet


@pytest.mark.parametrize("std", [None, [], "abc", {"a": 1}, 0.25, ["a"], [[0.25]]])
def test_stds_that_are_no_numbers_are_refused(std, tmp_path):
    parquet.write_frame(tmp_path / "masking.parquet", pa.table({"a": [1]}), {"std": std})
    run = {"space": "normalised", "folder": str(tmp_path)}
    with pytest.raises(
        ValueError, match=r"masking\.parquet does not state the channels' standard deviations; delete it"
    ):
        pixels_per_unit(run)
    parquet.write_frame(tmp_path / "masking.parquet", pa.table({"a": [1]}), {"std": [0.25, 0.75]})
    assert pixels_per_unit(run) == 0.5
