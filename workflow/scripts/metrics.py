"""Compute one run's numbers from its tables."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.metrics import record

    record(**arguments(snakemake))
