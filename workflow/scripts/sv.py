"""Record the singular values of one network's layers."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.spectrum import record

    record(
        Path(snakemake.input.checkpoint),
        sv=Path(snakemake.output.sv),
        svstd=Path(snakemake.output.svstd),
        padding=Path(snakemake.output.padding),
        dense=snakemake.params.dense,
        device=snakemake.config["device"],
    )
