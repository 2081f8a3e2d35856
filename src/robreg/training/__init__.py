"""Adversarial training: the loop over epochs, a single step, exact resumption, and the lease on a run's folder."""
