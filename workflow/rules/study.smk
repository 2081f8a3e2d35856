# All runs of a study -> tables -> figures -> report.


rule table:
    """
    Make {wildcards.table} of the study {wildcards.study}, one row per run, and its summary over seeds.
    """
    input:
        runs=lambda wildcards: of_runs(wildcards.study, TABLE_NEEDS[wildcards.table]),
        code=["src/robreg/study.py"],
    output:
        multiext(
            "results/studies/{study}/tables/{table}",
            parquet=".parquet",
            csv=".csv",
            summary_parquet="_summary.parquet",
            summary_csv="_summary.csv",
        ),
    log:
        "logs/table/{study}/{table}.log",
    benchmark:
        "benchmarks/table/{study}/{table}.tsv"
    wildcard_constraints:
        table="|".join(TABLE_NEEDS),
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime="10m",
    params:
        runs=lambda wildcards: runs(wildcards.study),
    script:
        "../scripts/table.py"


rule figure:
    """
    Draw {wildcards.figure} of the study {wildcards.study}.
    """
    input:
        runs=lambda wildcards: of_runs(wildcards.study, *FIGURE_NEEDS[wildcards.figure]),
        code=["src/robreg/figure.py", "src/robreg/study.py"],
    output:
        multiext("results/studies/{study}/figures/{figure}", svg=".svg", png=".png"),
    log:
        "logs/figure/{study}/{figure}.log",
    benchmark:
        "benchmarks/figure/{study}/{figure}.tsv"
    wildcard_constraints:
        figure="|".join(FIGURE_NEEDS),
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1500,
        runtime="10m",
    params:
        runs=lambda wildcards: runs(wildcards.study),
        compare=lambda wildcards: config["studies"][wildcards.study]["compare"],
    script:
        "../scripts/figure.py"
