# One trained network -> its measures, each a Parquet table. The modules that decide the numbers are inputs, so that an
# edit of one of them repeats its measure, and no training.


rule margins:
    """
    Margin, probability and loss of every clean example of {wildcards.dataset}/{wildcards.variant}.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        code=["src/robreg/margin.py", "src/robreg/network.py", "src/robreg/data.py"],
    output:
        margins="results/{dataset}/{variant}/margins.parquet",
    log:
        "logs/margins/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/margins/{dataset}/{variant}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        mem_mb=2000,
        runtime="1h",
    params:
        batch=lambda wildcards: block(wildcards)["evaluation_batch"],
    script:
        "../scripts/margins.py"


rule attacks:
    """
    Attack {wildcards.dataset}/{wildcards.variant}: eps {params.attack[eps]}, {params.attack[steps]} steps of {params.attack[step]}.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        code=["src/robreg/attack.py", "src/robreg/network.py", "src/robreg/data.py"],
    output:
        attacks="results/{dataset}/{variant}/attacks.parquet",
    log:
        "logs/attacks/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/attacks/{dataset}/{variant}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        mem_mb=2000,
        runtime="1h",
    params:
        attack=lambda wildcards: settings(wildcards)["evaluation"],
        batch=lambda wildcards: block(wildcards)["evaluation_batch"],
    script:
        "../scripts/attacks.py"


rule lossvar:
    """
    Maximal variation of the test loss of {wildcards.dataset}/{wildcards.variant}, eps {params.attack[eps]}.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        code=[
            "src/robreg/lossvar.py",
            "src/robreg/attack.py",
            "src/robreg/network.py",
            "src/robreg/data.py",
        ],
    output:
        lossvar="results/{dataset}/{variant}/lossvar.parquet",
    log:
        "logs/lossvar/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/lossvar/{dataset}/{variant}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        mem_mb=2000,
        runtime="1h",
    params:
        attack=lambda wildcards: settings(wildcards)["loss_variation"],
        batch=lambda wildcards: block(wildcards)["evaluation_batch"],
    script:
        "../scripts/lossvar.py"


rule sv:
    """
    Singular values of every layer of {wildcards.dataset}/{wildcards.variant}, and their spread.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        code=["src/robreg/spectrum.py", "src/robreg/network.py"],
    output:
        sv="results/{dataset}/{variant}/sv.parquet",
        svstd="results/{dataset}/{variant}/svstd.parquet",
    log:
        "logs/sv/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/sv/{dataset}/{variant}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        mem_mb=2000,
        runtime="1h",
    script:
        "../scripts/sv.py"


rule metrics:
    """
    Accuracies, losses, gaps and spectral complexity of {wildcards.dataset}/{wildcards.variant} in one row.
    """
    input:
        margins="results/{dataset}/{variant}/margins.parquet",
        attacks="results/{dataset}/{variant}/attacks.parquet",
        svstd="results/{dataset}/{variant}/svstd.parquet",
        code=["src/robreg/metrics.py"],
    output:
        metrics="results/{dataset}/{variant}/metrics.parquet",
    log:
        "logs/metrics/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/metrics/{dataset}/{variant}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime="10m",
    script:
        "../scripts/metrics.py"
