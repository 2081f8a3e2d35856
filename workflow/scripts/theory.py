"""Measure the quantities of the paper's theory on one network."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.theorem import record

    record(**arguments(snakemake, "device"))
