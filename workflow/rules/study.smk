# All runs of a study -> tables -> figures -> report.
from robreg.study import TABLE_NEEDS

# The measures that a figure is drawn from.
FIGURE_NEEDS = {
    "fig1": ["svstd", "margins", "metrics"],
    "fig3": ["metrics"],
    "fig4": ["margins"],
    "fig5": ["margins", "svstd"],
    "fig8": ["lossvar"],
    "fig12": ["metrics"],
}


def of_runs(study, *kinds):
    """The files of these kinds of all runs of a study."""
    return [f"{run['folder']}/{kind}.parquet" for run in runs(study) for kind in kinds]


def study_files(study):
    """What a study's own target asks for: the report, which is made from everything else."""
    runs(study)
    return f"results/studies/{study}/report.html"


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
    params:
        runs=lambda wildcards: runs(wildcards.study),
    log:
        "logs/table/{study}/{table}.log",
    benchmark:
        "benchmarks/table/{study}/{table}.tsv"
    conda:
        "../../envs/conda.yaml"
    wildcard_constraints:
        table="|".join(TABLE_NEEDS),
    threads: 1
    resources:
        mem_mb=1000,
        runtime="10m",
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
    params:
        runs=lambda wildcards: runs(wildcards.study),
        compare=lambda wildcards: config["studies"][wildcards.study]["compare"],
    log:
        "logs/figure/{study}/{figure}.log",
    benchmark:
        "benchmarks/figure/{study}/{figure}.tsv"
    conda:
        "../../envs/conda.yaml"
    wildcard_constraints:
        figure="|".join(FIGURE_NEEDS),
    threads: 1
    resources:
        mem_mb=1500,
        runtime="10m",
    script:
        "../scripts/figure.py"
