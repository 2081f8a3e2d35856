"""Record the strong attack on one network."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.apgd import record

    record(
        Path(snakemake.input.checkpoint),
        Path(snakemake.input.data).parent,
        Path(snakemake.output.apgd),
        margins=Path(snakemake.input.margins),
        attack=snakemake.params.attack,
        batch=snakemake.params.batch,
        device=snakemake.config["device"],
    )
