"""Checks that tables are consistent: those of one run with each other, and a study's tables with those of its runs."""
