"""How adversarial robustness regularises neural networks: one module per idea, importable without Snakemake."""

__version__ = "0.1.0"
