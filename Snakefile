# Train networks with growing adversarial robustness and measure how it regularises them.
from pathlib import Path

from snakemake.utils import min_version

from robreg.config import refuse_unreadable

min_version("9.27")

for file in {"config.yaml", *workflow.configfiles}:  # of the last Snakemake itself says if one is missing
    if Path(file).exists():
        refuse_unreadable(Path(file))


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
