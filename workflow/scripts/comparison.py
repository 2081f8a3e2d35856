"""Compare the paper's numbers with one study's."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.figures.comparison_plot import record

    record(
        snakemake.params.runs,
        study=snakemake.wildcards.study,
        parquet=Path(snakemake.output.parquet),
        csv=Path(snakemake.output.csv),
        svg=Path(snakemake.output.svg),
        png=Path(snakemake.output.png),
    )
