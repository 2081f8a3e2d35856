"""Triton kernels for attacks during training, in which weights need no gradients; each is tested without a GPU."""
