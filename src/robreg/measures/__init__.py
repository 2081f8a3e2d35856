"""Measurements on one trained network, which fill the tables of its run."""
