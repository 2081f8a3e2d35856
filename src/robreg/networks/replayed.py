"""A classifier whose forward pass and input gradient are replayed from a CUDA graph.

In fp32, an attack on a small network launches thousands of short kernels, and a GPU spends more time waiting for the
next one than computing. A graph launches all kernels of a pass at once.
"""

import logging
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from robreg.data.errors import describe_error
from robreg.networks.classifier import Classifier

Pass = Callable[[Tensor], Tensor]

log = logging.getLogger(__name__)


def replayed(model: Classifier, batch: int) -> Classifier:
    """Return a classifier for attacks in batches of `batch` images that replays its passes; on a CPU, model itself."""
    return Replayed(model, batch) if model.normalise.std.device.type == "cuda" else model


class Replayed(Classifier):
    """The same layers and weights as a classifier's, with passes that are replayed from a CUDA graph.

    A pass is replayed if the gradient of its input is wanted, the network is in eval mode, and there are more than
    batch / 2 and at most batch images; they are padded to batch images, which the network must treat independently of
    each other. Every other pass is that of the classifier. A graph computes no gradients of weights and runs no hooks,
    so attacks must call this within robreg.networks.frozen.frozen and without hooks. The first pass of a shape and type
    captures its graph, with the weights where they are then. If that fails, there is one warning and no further
    attempt.
    """

    def __init__(self, model: Classifier, batch: int) -> None:
        """Share a classifier's layers; batch: the number of images in a full batch."""
        super().__init__(model.normalise, model.network)
        self.training = model.training
        self.batch = batch
        self.possible = True  # whether no capture has failed
        self.graphs: dict[tuple[torch.Size, torch.dtype], Pass] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes) for pixels (B, C, H, W) in [0, 1]."""
        wanted = torch.is_grad_enabled() and x.requires_grad and not self.training
        if not (self.possible and wanted and self.batch / 2 < len(x) <= self.batch):
            return super().forward(x)
        padded = torch.cat([x, x.new_zeros(self.batch - len(x), *x.shape[1:])])
        graph = self._graph_for(padded)
        if graph is None:
            return super().forward(x)
        # The next replay overwrites the graph's logits and gradient, which callers may keep.
        padded.register_hook(torch.clone)
        return graph(padded)[: len(x)].clone()

    def _graph_for(self, x: Tensor) -> Pass | None:
        """Return the graph for x, which is captured if there is none yet, or None, after a warning, if that fails."""
        key = (x.shape, x.dtype)
        if key not in self.graphs:
            sample = (x.detach().clone().requires_grad_(),)
            try:
                self.graphs[key] = cast(Pass, torch.cuda.make_graphed_callables(super().forward, sample))
            except Exception as error:  # a user-defined network may do anything
                log.warning(
                    "a CUDA graph is not possible here (%s); this network is attacked without it, which is slower",
                    describe_error(error),
                )
                self.possible = False
        return self.graphs.get(key)
