"""Keep a few attacked images of one network."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.examples import record

    record(**arguments(snakemake, "device"))
