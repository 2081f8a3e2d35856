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
        code=expand(
            "src/robreg/{module}.py",
            module=["figure", "panel", "style", "setting", "study"],
        ),
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


rule report:
    """
    Write the report of the study {wildcards.study}: one page that opens offline.
    """
    input:
        runs=lambda wildcards: of_runs(
            wildcards.study, "history", "metrics", "margins", "svstd"
        ),
        data=lambda wildcards: [
            f"data/prepared/{dataset}/meta.json"
            for dataset in dict.fromkeys(
                run["dataset"] for run in runs(wildcards.study)
            )
        ],
        figures=lambda wildcards: [
            f"results/studies/{wildcards.study}/figures/{figure}.svg"
            for figure in config["studies"][wildcards.study]["figures"]
        ],
        tables=lambda wildcards: [
            f"results/studies/{wildcards.study}/tables/{table}{part}.parquet"
            for table in config["studies"][wildcards.study]["tables"]
            for part in ("", "_summary")
        ],
        template="workflow/report/report.html.j2",
        style="workflow/report/report.css",
        captions=lambda wildcards: [
            f"workflow/report/{item}.rst"
            for kind in ("figures", "tables")
            for item in config["studies"][wildcards.study][kind]
        ],
        code=expand(
            "src/robreg/{module}.py",
            module=[
                "report",
                "finding",
                "provenance",
                "quantity",
                "setting",
                "words",
                "study",
                *TRAINING_CODE,
            ],
        ),
    output:
        report=report(
            "results/studies/{study}/report.html",
            category="Report",
            caption="../report/report.rst",
        ),
    log:
        "logs/report/{study}.log",
    benchmark:
        "benchmarks/report/{study}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime="10m",
    params:
        title=lambda wildcards: config["studies"][wildcards.study]["title"],
        compare=lambda wildcards: config["studies"][wildcards.study]["compare"],
        runs=lambda wildcards: runs(wildcards.study),
        titles=lambda wildcards: {
            run["dataset"]: config["datasets"][run["dataset"]]["title"]
            for run in runs(wildcards.study)
        },
        settings=lambda wildcards: {
            f"{run['dataset']}/{run['variant']}": refuse(
                robreg_config.settings, run["dataset"], run["variant"]
            )
            for run in runs(wildcards.study)
        },
    script:
        "../scripts/report.py"
