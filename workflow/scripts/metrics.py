"""Record one run's numbers in one row."""

from pathlib import Path

from robreg.job import logged

with logged(snakemake.log[0]):
    from robreg.metrics import record

    record(
        margins=Path(snakemake.input.margins),
        attacks=Path(snakemake.input.attacks),
        svstd=Path(snakemake.input.svstd),
        out=Path(snakemake.output.metrics),
    )
