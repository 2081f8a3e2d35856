"""Detect operations that make the host wait for its device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoWaiting(TorchDispatchMode):
    """Raise an error for operations that make the host wait: reading values, and results whose size depends on them."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in self.WAITS or by_mask:
            self.waits(name)
        return func(*args, **(kwargs or {}))

    def waits(self, name):
        """Handle an operation that waits for the device."""
        raise AssertionError(name)
