# What all rules share: the checked configuration, reruns on changed data or settings only, and look-ups by run.
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import RerunTrigger

from robreg import config as robreg_config
from robreg.job import TRAINING_CODE
from robreg.item import FIGURES, TABLES, chosen

RULES = [
    "all",
    "prepare",
    "train",
    "margins",
    "apgd",
    "attacks",
    "lossvar",
    "sv",
    "spread",
    "theory",
    "metrics",
    "table",
    "figure",
    "claims",
    "comparison",
    "report",
]


wildcard_constraints:
    dataset="(?!studies/)[^/]+",
    variant="[^/]+",
    study="[^/]+",


try:
    robreg_config.check(
        config,
        Path(workflow.basedir) / "workflow/schemas/config.schema.yaml",
        reserved=RULES,
    )
except robreg_config.ConfigError as error:
    raise WorkflowError(str(error)) from None


def rerun_triggers(workflow):
    """Snakemake's triggers but "code" and "software-env": a comment in a script must not retrain a network.

    Modules that decide a measure's numbers are inputs of its rule instead. A choice on the command line stays.
    """
    chosen = workflow.dag_settings.rerun_triggers
    data_only = frozenset({RerunTrigger.MTIME, RerunTrigger.PARAMS, RerunTrigger.INPUT})
    return data_only if chosen == RerunTrigger.all() else chosen


# The settings are not there yet when a Snakefile is read, and a default profile would override the cluster's.
type(workflow).rerun_triggers = property(rerun_triggers)


def refuse(look_up, *names):
    """Call a look-up of robreg.config; a wrong name ends the workflow with one sentence that has the right one."""
    try:
        return look_up(config, *names)
    except robreg_config.ConfigError as error:
        raise WorkflowError(str(error)) from None


def block(wildcards):
    """The data set's block of config.yaml."""
    return refuse(robreg_config.block, wildcards.dataset)


def settings(wildcards):
    """The resolved settings of a run."""
    return refuse(robreg_config.settings, wildcards.dataset, wildcards.variant)


def training(wildcards):
    """Those of them that decide the trained network."""
    return robreg_config.training(settings(wildcards))


def by_network(value, wide):
    """A resource of a run's job: value, or wide for the wide ResNet, whose activations take fifty times the memory."""
    return lambda wildcards: wide if settings(wildcards)["arch"] == "wrn50" else value


def runs(study):
    """The runs of a study, each as its folder and the columns that identify it."""
    return refuse(robreg_config.study_runs, study)


def data_spec(wildcards):
    """What a data set's preparation depends on."""
    keys = (
        "kind",
        "source",
        "incomplete",
        "crop",
        "max_train",
        "max_test",
        "subset_seed",
        "label_column",
    )
    found = block(wildcards)
    return {
        "name": wildcards.dataset,
        **{key: found[key] for key in keys if key in found},
    }


def of_runs(study, *kinds):
    """The files of these kinds of all runs of a study."""
    return [f"{run['folder']}/{kind}.parquet" for run in runs(study) for kind in kinds]


def items(study, part):
    """The "figures" or "tables" of a study, each with the data sets that it is restricted to."""
    runs(study)
    return robreg_config.items(config, study, part)


def shown(study, item, part):
    """The runs of a study that one of its figures or tables shows."""
    listed = items(study, part)
    if item not in listed:
        raise WorkflowError(
            f"config.yaml: studies.{study}.{part}: {item} is not listed; add it, or ask for one of {list(listed)}"
        )
    return chosen(item, runs(study), listed[item])


def of_item(study, item, part):
    """The tables that a figure or table of a study is made from."""
    return [
        f"{run['folder']}/{kind}.parquet"
        for run in shown(study, item, part)
        for kind in {**FIGURES, **TABLES}[item].needs
    ]


def titles(study):
    """The titles of a study's data sets, by name."""
    return {
        run["dataset"]: config["datasets"][run["dataset"]]["title"]
        for run in runs(study)
    }


def study_files(study):
    """What a study's own target asks for: the report, which is made from everything else."""
    runs(study)
    return f"results/studies/{study}/report.html"
