"""Residual networks in Triton kernels, for trainings on a GPU; each kernel is tested without one."""
