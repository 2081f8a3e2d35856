"""Prepare one data set."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.data.preparation import prepare

    prepare(
        snakemake.params.spec,
        data_root=Path(snakemake.config["data_root"]),  # where the data lie is not part of what they are: no param
        out=Path(snakemake.output.meta).parent,
    )
