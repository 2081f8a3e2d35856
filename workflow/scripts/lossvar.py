"""Record the loss variation of one network."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.lossvar import record

    record(
        Path(snakemake.input.checkpoint),
        Path(snakemake.input.data).parent,
        Path(snakemake.output.lossvar),
        margins=Path(snakemake.input.margins),
        attack=snakemake.params.attack,
        batch=snakemake.params.batch,
        device=snakemake.config["device"],
    )
