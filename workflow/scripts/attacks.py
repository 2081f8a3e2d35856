"""Attack one network with the evaluation attack."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.evaluation_attack import record

    record(**arguments(snakemake, "device"))
