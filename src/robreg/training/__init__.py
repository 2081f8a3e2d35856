"""Adversarial training: the loop, one step of it, exact resumption, and the lease on a run's folder."""
