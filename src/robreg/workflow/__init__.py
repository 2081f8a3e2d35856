"""What the Snakefile and its scripts call; nothing else imports Snakemake."""
