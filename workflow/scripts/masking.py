"""Check whether one network hides its gradients from attacks."""

from robreg.workflow.job import arguments, logged

with logged(snakemake.log[0]):
    from robreg.measures.gradient_masking import record

    record(**arguments(snakemake, "device"))
