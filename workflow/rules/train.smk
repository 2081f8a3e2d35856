# Prepared data -> one trained network. Preparing the data again retrains nothing: instead, the measures refuse a network
# that was trained on other bytes. The state between epochs is kept in resume.pt next to the checkpoint. It is not a
# declared output, because Snakemake deletes the declared outputs of a failed job. A network that is trained already only
# gets a checkpoint and a history without epochs; the SHA-256 of its weights is a setting, whatever their file's times.


rule train:
    """
    Train {wildcards.dataset}/{wildcards.variant}: {params.settings[training][epochs]} epochs.
    """
    input:
        data=ancient("data/prepared/{dataset}/meta.json"),
        weights=ancient(weights_of_pretrained),
    output:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        history="results/{dataset}/{variant}/history.parquet",
    log:
        "logs/train/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/train/{dataset}/{variant}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        mem_mb=memory_of_training(6000, wrn50=40000),
        runtime=runtime_of_training("24h", resnet8="2h", resnet110="48h", wrn50="96h"),
    params:
        settings=training,
    script:
        "../scripts/train.py"
