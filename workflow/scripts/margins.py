"""Measure margins, probabilities and losses of one network."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.margins import record

    record(**arguments(snakemake, "device"))
