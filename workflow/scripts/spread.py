"""Measure how evenly the layers of one network pass perturbations on."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.perturbation_spread import record

    record(**arguments(snakemake, "device"))
