"""Judge the paper's claims by one study."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.claims.verdicts import record

    record(
        snakemake.params.runs,
        compare=snakemake.params.compare,
        study=snakemake.wildcards.study,
        parquet=Path(snakemake.output.parquet),
        csv=Path(snakemake.output.csv),
    )
