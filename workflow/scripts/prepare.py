"""Prepare one data set."""

from pathlib import Path

from robreg.workflow.job import limited_memory, logged

with logged(snakemake.log[0], shown=True):
    from robreg.data.preparation import prepare

    with limited_memory(snakemake.resources.mem_mb, "prepare"):
        prepare(
            snakemake.params.spec,
            data_root=Path(snakemake.config["data_root"]),  # not a param: moving the data repeats nothing
            out=Path(snakemake.output.meta).parent,
        )
