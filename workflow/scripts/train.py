"""Train one network."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.data.dataset import load_dataset
    from robreg.networks.device import choose_device
    from robreg.training.loop import train

    train(
        snakemake.params.settings,
        load_dataset(Path(snakemake.input.data).parent, snakemake.params.settings["data"]),
        checkpoint=Path(snakemake.output.checkpoint),
        history=Path(snakemake.output.history),
        weights=next(map(Path, snakemake.input.weights), None),
        device=choose_device(snakemake.config["device"], snakemake.params.settings["threads"]),
    )
