"""Check that one run's tables agree with each other."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.checks.run_checks import record

    record(
        Path(snakemake.output.checks).parent,
        bound=snakemake.params.bound,
        unprotected=snakemake.params.unprotected,
    )
