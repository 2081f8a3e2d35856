"""Measure the loss variation of one network."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.loss_variation import record

    record(**arguments(snakemake, "device"))
