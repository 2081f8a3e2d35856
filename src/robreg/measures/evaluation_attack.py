"""Run the evaluation attack on one network and write attacks.parquet."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robreg.attacks.evaluation import evaluate
from robreg.measures.margins import read_clean
from robreg.measures.open_run import open_run
from robreg.networks.replayed import replayed
from robreg.tables import parquet, provenance, schemas


def record(  # noqa: PLR0913 - one argument per file and setting
    *,
    checkpoint: Path,
    data: Path,
    margins: Path,
    apgd: Path,
    attacks: Path,
    attack: Mapping[str, Any],
    radii: Mapping[str, Any],
    batch: int,
    device: str,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Write attacks.parquet of one network: the evaluation attack, PGD at radii in pixels, and APGD's rows.

    All attack the test split. margins, apgd: the run's tables of the same names; attack: the settings of the evaluation
    attack; radii: eps, a list of radii in 1/255 of a pixel; relative_step, the step in radii; steps, seed, and n, the
    number of test examples that these attacks use, None for all.
    """
    model, meta, prepared = open_run(checkpoint, data, device, network)
    images, labels = prepared.split("test")
    model = replayed(model, min(batch, len(labels)))
    correct, _ = read_clean(margins, labels)
    attacks_of_pgd = [(attack, len(labels)), *_attacks_in_pixels(attack, radii, len(labels))]
    rows = []
    for spec, n in attacks_of_pgd:
        counts = evaluate(model, images[:n], labels[:n], spec, batch=batch, correct=correct[:n])
        rows.append({**spec, "split": "test", **counts})
    rows += parquet.read(apgd).to_pylist()
    columns = {name: [row[name] for row in rows] for name in schemas.SCHEMAS["attacks"].names}
    parquet.write(attacks, "attacks", columns, provenance.run_metadata(meta))


def _attacks_in_pixels(
    attack: Mapping[str, Any], radii: Mapping[str, Any], examples: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the settings of PGD at each radius in pixels, with its number of examples, unless `attack` is the same."""
    n = examples if radii["n"] is None else min(radii["n"], examples)
    for eps in radii["eps"]:
        own = {"eps": eps, "step": eps * radii["relative_step"], "steps": radii["steps"], "seed": radii["seed"]}
        spec = {**attack, "space": "pixel", "start": "random", "restarts": 1, **own}
        if (spec, n) != (dict(attack), examples):
            yield spec, n
