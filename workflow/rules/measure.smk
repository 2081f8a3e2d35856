# One trained network -> its measures, each a Parquet table. A rule's named inputs, outputs and params are the arguments of
# the function that its script calls, except its code. The modules that decide a measure's numbers are inputs, so
# editing one of them repeats the measure and no training. On a cluster all measures of one run share a job.


rule margins:
    """
    Measure margin, probability and loss of every clean example of {wildcards.dataset}/{wildcards.variant}.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        code=code_of_measure("margins"),
    output:
        margins="results/{dataset}/{variant}/margins.parquet",
    log:
        "logs/margins/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/margins/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        **measure_resources(),
    params:
        network=network,
        batch=lambda wildcards: block(wildcards)["evaluation_batch"],
    script:
        "../scripts/margins.py"


rule apgd:
    """
    Attack the first {params.attack[n]} test examples of {wildcards.dataset}/{wildcards.variant} with APGD: {params.attack[steps]} steps.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        margins="results/{dataset}/{variant}/margins.parquet",
        code=code_of_measure("strong_attack"),
    output:
        apgd="results/{dataset}/{variant}/apgd.parquet",
    log:
        "logs/apgd/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/apgd/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        **measure_resources(),
    params:
        network=network,
        attack=lambda wildcards: settings(wildcards)["strong_attack"],
        batch=lambda wildcards: block(wildcards)["evaluation_batch"],
    script:
        "../scripts/apgd.py"


rule attacks:
    """
    Attack {wildcards.dataset}/{wildcards.variant} with PGD, eps {params.attack[eps]}, {params.attack[steps]} steps of {params.attack[step]}, and append the rows of APGD.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        margins="results/{dataset}/{variant}/margins.parquet",
        apgd="results/{dataset}/{variant}/apgd.parquet",
        code=code_of_measure("evaluation_attack"),
    output:
        attacks="results/{dataset}/{variant}/attacks.parquet",
    log:
        "logs/attacks/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/attacks/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        **measure_resources(),
    params:
        network=network,
        attack=lambda wildcards: settings(wildcards)["evaluation"],
        radii=lambda wildcards: settings(wildcards)["pixel_radii"],
        batch=lambda wildcards: block(wildcards)["evaluation_batch"],
    script:
        "../scripts/attacks.py"


rule masking:
    """
    Check whether {wildcards.dataset}/{wildcards.variant} hides its gradients from attacks, with eps {params.spec[eps]}.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        margins="results/{dataset}/{variant}/margins.parquet",
        apgd="results/{dataset}/{variant}/apgd.parquet",
        code=code_of_measure("gradient_masking"),
    output:
        masking="results/{dataset}/{variant}/masking.parquet",
    log:
        "logs/masking/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/masking/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        **measure_resources(),
    params:
        network=network,
        spec=lambda wildcards: settings(wildcards)["masking"],
        batch=lambda wildcards: block(wildcards)["evaluation_batch"],
    script:
        "../scripts/masking.py"


rule lossvar:
    """
    Measure the maximal variation of the test loss of {wildcards.dataset}/{wildcards.variant}, eps {params.attack[eps]}.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        margins="results/{dataset}/{variant}/margins.parquet",
        code=code_of_measure("loss_variation"),
    output:
        lossvar="results/{dataset}/{variant}/lossvar.parquet",
    log:
        "logs/lossvar/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/lossvar/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        **measure_resources(),
    params:
        network=network,
        attack=lambda wildcards: settings(wildcards)["loss_variation"],
        batch=lambda wildcards: block(wildcards)["evaluation_batch"],
    script:
        "../scripts/lossvar.py"


rule sv:
    """
    Compute the singular values of every layer of {wildcards.dataset}/{wildcards.variant}: circular, live part, zero-padded.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        code=code_of_measure("spectra"),
    output:
        sv="results/{dataset}/{variant}/sv.parquet",
        svstd="results/{dataset}/{variant}/svstd.parquet",
        live="results/{dataset}/{variant}/live.parquet",
        padding="results/{dataset}/{variant}/padding.parquet",
    log:
        "logs/sv/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/sv/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        **measure_resources(),
    params:
        network=network,
        dense=lambda wildcards: settings(wildcards)["dense_spectrum"],
    script:
        "../scripts/sv.py"


rule spread:
    """
    Measure how evenly the layers of {wildcards.dataset}/{wildcards.variant} pass perturbations on, with eps {params.spec[eps]}.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        code=code_of_measure("perturbation_spread"),
    output:
        spread="results/{dataset}/{variant}/spread.parquet",
    log:
        "logs/spread/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/spread/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        **measure_resources(),
    params:
        network=network,
        spec=lambda wildcards: settings(wildcards)["spread"],
        batch=lambda wildcards: block(wildcards)["evaluation_batch"],
    script:
        "../scripts/spread.py"


rule examples:
    """
    Keep a few test images of {wildcards.dataset}/{wildcards.variant}, clean and attacked.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        code=code_of_measure("examples"),
    output:
        examples="results/{dataset}/{variant}/examples.parquet",
    log:
        "logs/examples/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/examples/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        **measure_resources(),
    params:
        network=network,
        attack=lambda wildcards: settings(wildcards)["evaluation"],
        trained=lambda wildcards: {
            "eps": settings(wildcards)["ar"],
            "space": settings(wildcards)["space"],
        },
    script:
        "../scripts/examples.py"


rule theory:
    """
    Measure the quantities of Theorem 3.1 and Lemma 3.1 for {wildcards.dataset}/{wildcards.variant}.
    """
    input:
        checkpoint="results/{dataset}/{variant}/checkpoint.pt",
        data="data/prepared/{dataset}/meta.json",
        svstd="results/{dataset}/{variant}/svstd.parquet",
        margins="results/{dataset}/{variant}/margins.parquet",
        code=code_of_measure("theorem"),
    output:
        theory="results/{dataset}/{variant}/theory.parquet",
    log:
        "logs/theory/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/theory/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: lambda wildcards: settings(wildcards)["threads"]
    resources:
        **measure_resources(),
    params:
        network=network,
        spec=lambda wildcards: settings(wildcards)["theory"],
    script:
        "../scripts/theory.py"


rule metrics:
    """
    Compute accuracies, losses, gaps and spectral complexity of {wildcards.dataset}/{wildcards.variant}.
    """
    input:
        margins="results/{dataset}/{variant}/margins.parquet",
        attacks="results/{dataset}/{variant}/attacks.parquet",
        svstd="results/{dataset}/{variant}/svstd.parquet",
        code=code_of_measure("metrics"),
    output:
        metrics="results/{dataset}/{variant}/metrics.parquet",
    log:
        "logs/metrics/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/metrics/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime="10m",
    script:
        "../scripts/metrics.py"


rule checks:
    """
    Check that the tables of {wildcards.dataset}/{wildcards.variant} agree with each other.
    """
    input:
        tables=expand(
            "results/{{dataset}}/{{variant}}/{kind}.parquet",
            kind=["history", "margins", "attacks", "lossvar", "sv", "svstd"]
            + ["live", "padding", "metrics", "masking"],
        ),
        code=code_of("checks.run_checks"),
    output:
        checks="results/{dataset}/{variant}/checks.parquet",
    log:
        "logs/checks/{dataset}/{variant}.log",
    benchmark:
        "benchmarks/checks/{dataset}/{variant}.tsv"
    group:
        "measures_{dataset}_{variant}"
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime="10m",
    params:
        bound=lambda wildcards: conditions(wildcards.dataset, wildcards.variant)[
            "bound"
        ],
        unprotected=lambda wildcards: conditions(wildcards.dataset, wildcards.variant)[
            "unprotected"
        ],
    script:
        "../scripts/checks.py"
