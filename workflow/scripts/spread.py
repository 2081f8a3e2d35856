"""Record how evenly the layers of one network pass perturbations on."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.spread import record

    record(
        Path(snakemake.input.checkpoint),
        Path(snakemake.input.data).parent,
        Path(snakemake.output.spread),
        spec=snakemake.params.spec,
        batch=snakemake.params.batch,
        device=snakemake.config["device"],
    )
