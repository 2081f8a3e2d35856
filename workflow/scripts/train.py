"""Train one network."""

from pathlib import Path

from robreg.job import device, logged

with logged(snakemake.log[0]):
    from robreg.data import load
    from robreg.train import train

    train(
        snakemake.params.settings,
        load(Path(snakemake.input.data).parent),
        checkpoint=Path(snakemake.output.checkpoint),
        history=Path(snakemake.output.history),
        device=device(snakemake.config["device"], snakemake.params.settings["threads"]),
    )
