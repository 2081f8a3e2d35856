"""Write a study's report."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.report import write

    write(
        Path(snakemake.output.report),
        snakemake.params.study,
        template=Path(snakemake.input.template),
        figures=[Path(path) for path in snakemake.input.figures],
        tables=[Path(path) for path in snakemake.input.tables],
        data=[Path(path) for path in snakemake.input.data],
    )
