# The source of a data set -> arrays of uint8 in data/prepared/, checked once.
# This rule runs on the submitting host, because compute nodes may have no internet access.


localrules:
    prepare,


rule prepare:
    """
    Prepare {wildcards.dataset} (kind {params.spec[kind]}, source {params.spec[source]}) once: arrays, mean and std.
    """
    output:
        multiext(
            "data/prepared/{dataset}/",
            train_images="train_images.npy",
            train_labels="train_labels.npy",
            test_images="test_images.npy",
            test_labels="test_labels.npy",
            meta="meta.json",
        ),
    log:
        "logs/prepare/{dataset}.log",
    benchmark:
        "benchmarks/prepare/{dataset}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        spec=data_spec,
    script:
        "../scripts/prepare.py"
