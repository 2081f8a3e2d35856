# Train networks with growing adversarial robustness and measure how it regularises them.
from pathlib import Path

from snakemake.utils import min_version

from robreg.runs.yaml_file import check_yaml_file
from robreg.workflow import driver

min_version("9.27")
driver.install(workflow)

for file in dict.fromkeys(["config.yaml", *workflow.configfiles]):
    if Path(file).exists():  # otherwise Snakemake reports it
        check_yaml_file(Path(file))


configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/study.smk"


rule all:
    input:
        lambda _: study_files("paper"),


for study in config["studies"]:

    rule:
        name:
            study
        input:
            study_files(study),
