"""Make one table of a study."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.tables.study_tables import record

    record(
        snakemake.wildcards.table,
        snakemake.params.runs,
        compare=snakemake.params.compare,
        folder=Path(snakemake.output.parquet).parent,
        study=snakemake.wildcards.study,
    )
