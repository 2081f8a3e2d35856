"""Run APGD on one network and write apgd.parquet."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robreg.attacks.apgd import LOSSES, evaluate
from robreg.measures.margins import read_clean
from robreg.measures.open_run import open_run
from robreg.networks.replayed import replayed
from robreg.tables import parquet, provenance, schemas

log = logging.getLogger(__name__)


def record(  # noqa: PLR0913 - one argument per file and setting
    *,
    checkpoint: Path,
    data: Path,
    margins: Path,
    apgd: Path,
    attack: Mapping[str, Any],
    batch: int,
    device: str,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Write apgd.parquet of one network: one row per loss and one for their worst case, on the first n test examples.

    margins: the run's margins.parquet; attack: n, and the settings of evaluate. With two classes the cross entropy is
    the only loss, because dlr needs three classes.
    """
    model, meta, prepared = open_run(checkpoint, data, device, network)
    images, labels = (part[: attack["n"]] for part in prepared.split("test"))
    model = replayed(model, min(batch, len(labels)))
    losses = list(LOSSES) if prepared.classes > 2 else ["cross_entropy"]
    if "dlr" not in losses:
        log.info("dlr needs 3 classes and there are %d, so the worst case is over cross entropy only", prepared.classes)
    correct, _ = read_clean(margins, labels)
    rows = evaluate(model, images, labels, attack, losses=losses, batch=batch, correct=correct)
    columns = {name: [row[name] for row in rows] for name in schemas.SCHEMAS["apgd"].names}
    parquet.write(apgd, "apgd", columns, provenance.run_metadata(meta))
