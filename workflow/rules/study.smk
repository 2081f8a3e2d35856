# All runs of a study -> tables -> figures -> report.


localrules:
    table,
    figure,
    claims,
    comparison,
    audit,
    report,


rule table:
    """
    Make {wildcards.table} of the study {wildcards.study}: one row per run, and a summary over seeds.
    """
    input:
        runs=lambda wildcards: files_of_item(wildcards.study, wildcards.table, "tables"),
        code=code_of("tables.study_tables"),
    output:
        parquet="results/studies/{study}/tables/{table}.parquet",
        summary_parquet="results/studies/{study}/tables/{table}_summary.parquet",
        summary_csv="results/studies/{study}/tables/{table}_summary.csv",
        csv=report(
            "results/studies/{study}/tables/{table}.csv",
            category="Tables",
            caption="../report/item.rst",
            labels=lambda wildcards: {
                "table": wildcards.table,
                "content": TABLES[wildcards.table].title,
                "study": wildcards.study,
            },
        ),
    log:
        "logs/table/{study}/{table}.log",
    benchmark:
        "benchmarks/table/{study}/{table}.tsv"
    wildcard_constraints:
        table="|".join(TABLES),
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime="10m",
    params:
        runs=lambda wildcards: runs_of_item(wildcards.study, wildcards.table, "tables"),
        compare=lambda wildcards: compared_strengths(config, wildcards.study),
    script:
        "../scripts/table.py"


rule figure:
    """
    Draw {wildcards.figure} of the study {wildcards.study}.
    """
    input:
        runs=lambda wildcards: files_of_item(
            wildcards.study, wildcards.figure, "figures"
        ),
        code=code_of("figures.paper_figures"),
    output:
        svg=report(
            "results/studies/{study}/figures/{figure}.svg",
            category="Figures",
            caption="../report/item.rst",
            labels=lambda wildcards: {
                "figure": wildcards.figure,
                "content": FIGURES[wildcards.figure].title,
                "study": wildcards.study,
            },
        ),
        png="results/studies/{study}/figures/{figure}.png",
    log:
        "logs/figure/{study}/{figure}.log",
    benchmark:
        "benchmarks/figure/{study}/{figure}.tsv"
    wildcard_constraints:
        figure="|".join(FIGURES),
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1500,
        runtime="10m",
    params:
        runs=lambda wildcards: runs_of_item(
            wildcards.study, wildcards.figure, "figures"
        ),
    script:
        "../scripts/figure.py"


rule claims:
    """
    Judge every claim of the paper by the runs of the study {wildcards.study}.
    """
    input:
        runs=lambda wildcards: tables_of_runs(
            wildcards.study, "metrics", "margins", "svstd", "lossvar", "spread"
        ),
        code=code_of("claims.verdicts"),
    output:
        parquet="results/studies/{study}/claims.parquet",
        csv=report(
            "results/studies/{study}/claims.csv",
            category="Tables",
            caption="../report/claims.rst",
            labels=lambda wildcards: {
                "table": "claims",
                "content": "The paper's claims, judged",
                "study": wildcards.study,
            },
        ),
    log:
        "logs/claims/{study}.log",
    benchmark:
        "benchmarks/claims/{study}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        runs=lambda wildcards: runs(wildcards.study),
        compare=lambda wildcards: compared_strengths(config, wildcards.study),
    script:
        "../scripts/claims.py"


rule comparison:
    """
    Compare every number that the paper prints with the study {wildcards.study}.
    """
    input:
        runs=lambda wildcards: tables_of_runs(
            wildcards.study, "metrics", "svstd", "lossvar"
        ),
        code=code_of("figures.comparison_plot"),
        reference=f"{HERE}src/robreg/paper/reference.csv",
    output:
        parquet="results/studies/{study}/comparison.parquet",
        csv=report(
            "results/studies/{study}/comparison.csv",
            category="Tables",
            caption="../report/comparison_table.rst",
            labels=lambda wildcards: {
                "table": "comparison",
                "content": "The paper's numbers compared with ours",
                "study": wildcards.study,
            },
        ),
        svg=report(
            "results/studies/{study}/figures/comparison.svg",
            category="Figures",
            caption="../report/comparison.rst",
            labels=lambda wildcards: {
                "figure": "comparison",
                "content": "The paper's numbers against ours",
                "study": wildcards.study,
            },
        ),
        png="results/studies/{study}/figures/comparison.png",
    log:
        "logs/comparison/{study}.log",
    benchmark:
        "benchmarks/comparison/{study}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1500,
        runtime="10m",
    params:
        runs=lambda wildcards: runs(wildcards.study),
    script:
        "../scripts/comparison.py"


rule audit:
    """
    Check that the tables and claims of the study {wildcards.study} follow from the files of its runs, and seal all that it shows.
    """
    input:
        runs=lambda wildcards: checked_tables(wildcards.study),
        data=lambda wildcards: prepared_data(wildcards.study),
        tables=lambda wildcards: [
            f"results/studies/{wildcards.study}/tables/{table}{part}"
            for table in items(wildcards.study, "tables")
            for part in (".parquet", ".csv", "_summary.parquet", "_summary.csv")
        ],
        figures=lambda wildcards: [
            f"results/studies/{wildcards.study}/figures/{figure}{part}"
            for figure in items(wildcards.study, "figures")
            for part in (".svg", ".png")
        ]
        + judged(wildcards.study, "figures/comparison.svg", "figures/comparison.png"),
        claims=lambda wildcards: judged(
            wildcards.study,
            *(
                f"{stem}{end}"
                for stem in ("claims", "comparison")
                for end in (".parquet", ".csv")
            ),
        ),
        code=code_of("checks.study_audit"),
    output:
        audit="results/studies/{study}/audit.parquet",
    log:
        "logs/audit/{study}.log",
    benchmark:
        "benchmarks/audit/{study}.tsv"
    conda:
        "../../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        runs=lambda wildcards: runs(wildcards.study),
        shown=lambda wildcards: shown(wildcards.study),
        compare=lambda wildcards: compared_strengths(config, wildcards.study),
    script:
        "../scripts/audit.py"


rule report:
    """
    Write the report of the study {wildcards.study}: one page that opens offline.
    """
    input:
        runs=lambda wildcards: tables_of_runs(
            wildcards.study,
            "history",
            "metrics",
            "masking",
            "attacks",
            "margins",
            "svstd",
        ),
        reference=f"{HERE}src/robreg/paper/reference.csv",
        data=lambda wildcards: prepared_data(wildcards.study),
        figures=lambda wildcards: [
            f"results/studies/{wildcards.study}/figures/{figure}.svg"
            for figure in items(wildcards.study, "figures")
        ],
        tables=lambda wildcards: [
            f"results/studies/{wildcards.study}/tables/{table}{part}.parquet"
            for table in items(wildcards.study, "tables")
            for part in ("", "_summary")
        ],
        template=f"{HERE}workflow/report/report.html.j2",
        style=f"{HERE}workflow/report/report.css",
        behaviour=f"{HERE}workflow/report/report.js",
        list_of_studies=f"{HERE}workflow/report/index.html.j2",
        captions=lambda wildcards: [
            f"{HERE}workflow/report/{item}.rst"
            for kind in ("figures", "tables")
            for item in items(wildcards.study, kind)
        ]
        + [f"{HERE}workflow/report/comparison.rst"],
        claims=lambda wildcards: judged(wildcards.study, "claims.parquet"),
        audit="results/studies/{study}/audit.parquet",
        comparison=lambda wildcards: judged(wildcards.study, "comparison.parquet"),
        comparison_plot=lambda wildcards: judged(
            wildcards.study, "figures/comparison.svg"
        ),
        code=code_of("report.page", *TRAINING),
    output:
        report=report(
            "results/studies/{study}/report.html",
            category="Report",
            caption="../report/report.rst",
            labels=lambda wildcards: {
                "content": "The study as one page",
                "study": wildcards.study,
            },
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
        compare=lambda wildcards: compared_strengths(config, wildcards.study),
        runs=lambda wildcards: runs(wildcards.study),
        not_run=lambda wildcards: [
            run
            | {
                "epochs": run_settings(config, run["dataset"], run["variant"])[
                    "training"
                ]["epochs"]
            }
            for run in study_config.study_runs(config, wildcards.study)
            if run["folder"] not in {one["folder"] for one in runs(wildcards.study)}
        ],
        not_made=lambda wildcards: study_config.unmakeable_items(
            config, wildcards.study, runs(wildcards.study)
        ),
        titles=lambda wildcards: titles(wildcards.study),
        settings=lambda wildcards: {
            f"{run['dataset']}/{run['variant']}": run_settings(
                config, run["dataset"], run["variant"]
            )
            for run in runs(wildcards.study)
        },
        shown=lambda wildcards: shown(wildcards.study),
    script:
        "../scripts/report.py"
