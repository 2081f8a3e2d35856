"""Code that the Snakefile, its rules and its scripts call; no other part of the package imports Snakemake."""
