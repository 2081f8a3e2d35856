"""Runs and studies: the names and settings of runs, and the figures and tables that a study of runs can show."""
