"""Check that a study's tables and claims follow from the files of its runs."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.checks.study_audit import record

    record(
        snakemake.wildcards.study,
        snakemake.params.runs,
        snakemake.params.shown,
        compare=snakemake.params.compare,
        folder=Path(snakemake.output.audit).parent,
        judged=bool(snakemake.input.claims),
    )
