"""Compute the singular values of one network's layers."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.spectra import record

    record(**arguments(snakemake, "device"))
