"""Draw one figure of a study."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.figures.paper_figures import draw

    draw(
        snakemake.wildcards.figure,
        snakemake.params.runs,
        svg=Path(snakemake.output.svg),
        png=Path(snakemake.output.png),
    )
