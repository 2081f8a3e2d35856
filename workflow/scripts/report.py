"""Write a study's report."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.report.page import Files, record

    record(
        Path(snakemake.output.report),
        {
            "name": snakemake.wildcards.study,
            "title": snakemake.params.title,
            "compare": snakemake.params.compare,
            "runs": snakemake.params.runs,
            "not_run": snakemake.params.not_run,
            "not_made": snakemake.params.not_made,
            "titles": snakemake.params.titles,
            "settings": snakemake.params.settings,
            "shown": snakemake.params.shown,
        },
        Files(
            figures=[Path(path) for path in snakemake.input.figures],
            tables=[Path(path) for path in snakemake.input.tables],
            data=[Path(path) for path in snakemake.input.data],
            audit=Path(snakemake.input.audit),
            claims=next(map(Path, snakemake.input.claims), None),
            comparison=next(map(Path, snakemake.input.comparison), None),
            plot=next(map(Path, snakemake.input.comparison_plot), None),
        ),
        template=Path(snakemake.input.template),
    )
