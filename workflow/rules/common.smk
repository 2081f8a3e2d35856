# What all rules share: the validated configuration, and functions that look up what belongs to a run or a study. Their
# ConfigErrors, in one sentence each, are all that driver.py prints of a wrong name.
import functools
from pathlib import Path

from robreg.checks.seals import BASIC
from robreg.runs import config as study_config
from robreg.runs import needs
from robreg.runs.catalogue import FIGURES, TABLES, select_runs
from robreg.runs.config import compared_strengths, listed_items
from robreg.runs.settings import (
    ConfigError,
    data_settings,
    dataset_block,
    hash_settings,
    pretrained_weights,
    run_settings,
    training_settings,
)
from robreg.runs.variant import paper_name
from robreg.tables.provenance import COMPUTING, TRAINING, code_files
from robreg.training.kept import is_trained
from robreg.training.lease import made_progress

RULES = [
    "all",
    "prepare",
    "train",
    "margins",
    "apgd",
    "attacks",
    "masking",
    "lossvar",
    "sv",
    "spread",
    "examples",
    "theory",
    "metrics",
    "checks",
    "table",
    "figure",
    "claims",
    "comparison",
    "audit",
    "report",
]

# Code, schema and templates lie with the Snakefile, data and results in the working directory (--directory). Where these
# are one folder, paths are relative, as those are that Snakemake recorded for finished jobs.
HERE = "" if Path(workflow.basedir).samefile(".") else f"{workflow.basedir}/"


wildcard_constraints:
    dataset="(?!studies/)[^/]+",
    variant="[^/]+",
    study="[^/]+",


# What --config gives is text, except True and numbers.
if config.setdefault("only_finished", False) in ("true", "false"):
    config["only_finished"] = config["only_finished"] == "true"
study_config.validate(
    config,
    Path(f"{HERE}workflow/schemas/config.schema.yaml"),
    reserved=RULES,
)


def block(wildcards):
    """Return the data set's block of config.yaml."""
    return dataset_block(config, wildcards.dataset)


def settings(wildcards):
    """Return the resolved settings of a run."""
    return run_settings(config, wildcards.dataset, wildcards.variant)


def training(wildcards):
    """Return the settings that decide the trained network, without those of the measures."""
    return training_settings(settings(wildcards))


def weights_of_pretrained(wildcards):
    """Return the file of a network that is trained already, in a list; an empty list for one that is trained here."""
    try:
        weights = pretrained_weights(config, settings(wildcards)["arch"])
    except (
        ConfigError
    ):  # the params of train raise it again, of which Snakemake keeps the sentence
        return []
    return [] if weights is None else [str(weights)]


def network(wildcards):
    """Return the architecture of a measure's network, and the hash of its settings, which may change without it."""
    found = training(wildcards)
    return {
        "network": hash_settings(found)[:16],
        **{key: found[key] for key in ("arch", "width", "factory")},
    }


def by_architecture(value, **exceptions):
    """Return a resource of a run's job: value, or the exception that is named after its architecture."""

    def found(wildcards):
        own = settings(wildcards)
        # Fixup's scalars change nothing about the size of a network.
        arch = own["arch"] if own["factory"] else paper_name(own["arch"])
        return exceptions.get(arch, value)

    return found


def doubled_on_retry(value, **exceptions):
    """Do as by_architecture, and double the resource after an attempt that may have had too little of it."""
    first = by_architecture(value, **exceptions)
    return lambda wildcards, attempt: first(wildcards) * min(attempt, 2)


def memory_of_training(value, **exceptions):
    """Do as doubled_on_retry for a training: its time limit ends attempts too, so double only if the last one made no progress."""
    first = by_architecture(value, **exceptions)

    def found(wildcards, attempt):
        lease = Path(f"results/{wildcards.dataset}/{wildcards.variant}/lease.json")
        return first(wildcards) * (2 if attempt > 1 and not made_progress(lease) else 1)

    return found


def runtime_of_training(value, **exceptions):
    """Do as by_architecture, but for networks that are trained already, of which only the weights are read."""
    first = by_architecture(value, **exceptions)
    return lambda wildcards: (
        "30m" if "pretrained" in settings(wildcards) else first(wildcards)
    )


def measure_resources():
    """Return the resources of a measure that needs the network."""
    return {
        "mem_mb": doubled_on_retry(4000, wrn50=16000),
        "runtime": doubled_on_retry(30, resnet8=10, resnet110=60, wrn50=120),  # minutes
        "turn": 1,  # one measure of a group at a time
    }


def code_of(*modules):
    """Return the files of these modules, and of everything that they import from the package."""
    return [f"{HERE}src/robreg/{file}" for file in code_files(*modules, folders=None)]


def code_of_measure(module):
    """Return the files that decide a measure's numbers; editing how tables are written repeats no measure."""
    files = code_files(f"measures.{module}", folders=COMPUTING)
    return [f"{HERE}src/robreg/{file}" for file in files]


@functools.cache
def runs(study):
    """
    Return the runs of a study, each with its folder and the columns that identify it; only the finished ones if wanted.

    The rule checks is for runs with all tables that it compares. Of a run with fewer, the audit checks those that it
    has, under the conditions that the key checks states.
    """
    listed = study_config.chosen_runs(config, study, is_trained)
    if needs.has_all_checked(config["studies"][study], listed_items(config, study)):
        return listed
    return [
        run | {"checks": conditions(run["dataset"], run["variant"])} for run in listed
    ]


def conditions(dataset, variant):
    """Return what the checks of a run depend on beside its tables."""
    return needs.check_conditions(run_settings(config, dataset, variant))


def checked_tables(study):
    """Return the files of runs that the audit of a study reads: their checks, or the tables that it checks itself."""
    kinds = BASIC if "checks" in runs(study)[0] else ["checks"]
    return tables_of_runs(study, *kinds)


def judged(study, *files):
    """Return files of a study that the paper's claims and numbers are judged in; none if it judges none."""
    wanted = needs.judges_claims(config["studies"][study])
    return [f"results/studies/{study}/{file}" for file in files] if wanted else []


def data_spec(wildcards):
    """Return the settings that the preparation of a data set depends on."""
    return data_settings(config, wildcards.dataset)


def tables_of_runs(study, *kinds):
    """Return the tables of these kinds of all runs of a study."""
    return [f"{run['folder']}/{kind}.parquet" for run in runs(study) for kind in kinds]


def items(study, part):
    """Return the "figures" or "tables" of a study, each with what it is restricted to."""
    return study_config.makeable_items(config, study, part, runs(study))


def shown(study):
    """Return all figures and tables of a study, each with what it is restricted to."""
    return {**items(study, "figures"), **items(study, "tables")}


def prepared_data(study):
    """Return the descriptions of the prepared data of a study's runs."""
    datasets = dict.fromkeys(run["dataset"] for run in runs(study))
    return [f"data/prepared/{dataset}/meta.json" for dataset in datasets]


def runs_of_item(study, item, part):
    """Return the runs of a study that one of its figures or tables shows."""
    listed = items(study, part)
    if item not in listed:
        raise ConfigError(
            f"config.yaml: studies.{study}.{part}: {item} is not listed; add it there, or ask for one of {list(listed)}"
        )
    return select_runs(item, runs(study), listed[item])


def files_of_item(study, item, part):
    """Return the files that a figure or table of a study is made from."""
    return [
        f"{run['folder']}/{kind}.parquet"
        for run in runs_of_item(study, item, part)
        for kind in ({**FIGURES, **TABLES}[item].needs + ("masking",))
    ]


def titles(study):
    """Return the titles of a study's data sets, by name."""
    return {
        run["dataset"]: config["datasets"][run["dataset"]]["title"]
        for run in runs(study)
    }


def study_files(study):
    """Return what a study's own target asks for: the report, which is made from everything else."""
    study_config.study_runs(config, study)
    return f"results/studies/{study}/report.html"
