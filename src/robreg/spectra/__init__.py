"""Layers as linear maps: their singular values, and their projection onto a bound on the largest."""
