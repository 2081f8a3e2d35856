"""Check whether one network hides its gradients."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.masking import record

    record(
        Path(snakemake.input.checkpoint),
        Path(snakemake.input.data).parent,
        Path(snakemake.output.masking),
        tables=Path(snakemake.input.margins).parent,
        spec=snakemake.params.spec,
        batch=snakemake.params.batch,
        device=snakemake.config["device"],
    )
