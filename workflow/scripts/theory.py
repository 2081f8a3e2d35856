"""Record the quantities of the paper's theory for one network."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.theory import record

    record(
        Path(snakemake.input.checkpoint),
        Path(snakemake.input.data).parent,
        Path(snakemake.output.theory),
        tables=Path(snakemake.input.svstd).parent,
        spec=snakemake.params.spec,
        device=snakemake.config["device"],
    )
