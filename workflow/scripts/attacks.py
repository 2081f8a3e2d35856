"""Record the evaluation attack on one network."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.attack import record

    record(
        Path(snakemake.input.checkpoint),
        Path(snakemake.input.data).parent,
        Path(snakemake.output.attacks),
        tables=Path(snakemake.input.margins).parent,
        attack=snakemake.params.attack,
        batch=snakemake.params.batch,
        device=snakemake.config["device"],
    )
