"""Attack one network with APGD."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.strong_attack import record

    record(**arguments(snakemake, "device"))
