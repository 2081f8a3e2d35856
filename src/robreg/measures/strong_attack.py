"""APGD on one network: apgd.parquet."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robreg.attacks.apgd import LOSSES, evaluate
from robreg.measures.margins import read_clean
from robreg.measures.open_run import open_run
from robreg.tables import parquet, provenance, schemas

log = logging.getLogger(__name__)


def record(  # noqa: PLR0913 - a measure is its files and settings
    *, checkpoint: Path, data: Path, margins: Path, apgd: Path, attack: Mapping[str, Any], batch: int, device: str
) -> None:
    """Write apgd.parquet of one network: a row per loss and their worst case, on the first n test examples.

    margins: its margins.parquet; attack: n, and what evaluate asks for. With two classes the cross entropy is the only
    loss, as dlr needs three.
    """
    model, meta, prepared = open_run(checkpoint, data, device)
    images, labels = (part[: attack["n"]] for part in prepared.split("test"))
    losses = list(LOSSES) if prepared.classes > 2 else ["cross_entropy"]
    if "dlr" not in losses:
        log.info("dlr needs 3 classes and there are %d: worst is cross entropy alone", prepared.classes)
    correct, _ = read_clean(margins, labels)
    rows = evaluate(model, images, labels, attack, losses=losses, batch=batch, correct=correct)
    columns = {name: [row[name] for row in rows] for name in schemas.SCHEMAS["apgd"].names}
    parquet.write(apgd, "apgd", columns, provenance.run_metadata(meta))
