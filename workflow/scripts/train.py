"""Train one network."""

from pathlib import Path

from robreg.workflow.job import logged

with logged(snakemake.log[0]):
    from robreg.data.dataset import load_dataset
    from robreg.networks.device import choose_device
    from robreg.training.loop import adopt, train

    settings = snakemake.params.settings
    data = load_dataset(Path(snakemake.input.data).parent, settings["data"])
    files = {"checkpoint": Path(snakemake.output.checkpoint), "history": Path(snakemake.output.history)}
    if snakemake.input.weights:
        adopt(settings, data, Path(snakemake.input.weights[0]), **files)
    else:
        train(settings, data, **files, device=choose_device(snakemake.config["device"], settings["threads"]))
