"""Run the evaluation attack on one network and write attacks.parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robreg.attacks.evaluation import evaluate
from robreg.measures.margins import read_clean
from robreg.measures.open_run import open_run
from robreg.tables import parquet, provenance, schemas


def record(  # noqa: PLR0913 - one argument per file and setting
    *,
    checkpoint: Path,
    data: Path,
    margins: Path,
    apgd: Path,
    attacks: Path,
    attack: Mapping[str, Any],
    batch: int,
    device: str,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Write attacks.parquet of one network: the evaluation attack on the test split, then the rows of apgd.parquet.

    margins, apgd: the run's tables of the same names; attack: the settings of the evaluation attack.
    """
    model, meta, prepared = open_run(checkpoint, data, device, network)
    images, labels = prepared.split("test")
    correct, _ = read_clean(margins, labels)
    counts = evaluate(model, images, labels, attack, batch=batch, correct=correct)
    rows = [{**attack, "split": "test", **counts}, *parquet.read(apgd).to_pylist()]
    columns = {name: [row[name] for row in rows] for name in schemas.SCHEMAS["attacks"].names}
    parquet.write(attacks, "attacks", columns, provenance.run_metadata(meta))
