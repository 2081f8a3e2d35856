"""Record margins of one network."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.margin import record

    record(
        Path(snakemake.input.checkpoint),
        Path(snakemake.input.data).parent,
        Path(snakemake.output.margins),
        batch=snakemake.params.batch,
        device=snakemake.config["device"],
    )
