"""One step of adversarial training, as fast as its device allows: attack, forward and backward pass, update."""

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.attacks.pgd import Radius, pgd_iterates

PRECISIONS = ("fp32", "bf16")
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WARM_UP = 3  # steps before a capture, for cuDNN and the compiler to make their choices

Result = tuple[Tensor, Tensor]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepAttack:
    """PGD on a batch; eps and step in pixel units of [0, 1], one number or one per channel, (C, 1, 1)."""

    eps: Radius
    step: Radius
    steps: int


class TrainingStep:
    """Attack a batch, train on its adversarial examples.

    precision: bf16 computes both passes in bfloat16 (Kalamkar et al. 2019) by automatic mixed precision; weights,
    gradients, optimiser, normalisation, loss and the adversarial examples stay fp32. Without compile, the step is eager
    PyTorch, and in fp32 on a CPU the reference. compile: forward and backward passes of full batches go through
    torch.compile, and on a GPU the whole step is one CUDA graph. What cannot be compiled or captured here runs eager
    after one warning; `how` says what was done. deterministic: on a GPU, algorithms that give the same bits each time,
    inside of `repeatable`; on a CPU all are such.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        *,
        attack: StepAttack | None = None,
        precision: str = "fp32",
        compile: bool = False,
        deterministic: bool = False,
    ) -> None:
        """Take the model where it is: its device and weights; the optimiser is of its parameters."""
        if precision not in PRECISIONS:
            raise ValueError(f"training.precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        self.device = next(model.parameters()).device
        self.precision, self.compile = precision, compile
        self.captures = compile and self.device.type == "cuda"
        if precision == "bf16" or self.device.type == "cuda":
            model.to(memory_format=torch.channels_last)  # what matrix units read, whatever the images' layout
        self.model, self.optimizer, self.attack = model, optimizer, attack
        self.twin, self.casts = _twin(model, torch.bfloat16 if precision == "bf16" else None)
        self.size: int | None = None  # of a full batch, the one that is compiled for
        self.compiled: tuple[nn.Module, nn.Module] | None = None  # the model and its twin
        self.graph: _Graph | None = None  # of full batches
        self.lr: float | None = None  # that the graph holds
        if self.device.type == "cuda":
            # The best algorithms for the one size that nearly all batches have, by their times in this run.
            torch.backends.cudnn.benchmark = not deterministic

    @property
    def how(self) -> str:
        """How full batches are computed: eager, compiled, or captured."""
        made = "compiled" if self.compiled else "eager"
        return f"{made}, CUDA graph" if self.graph else made

    def __call__(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Result:
        """Update the weights once; return the loss, (), and the logits, (B, classes), both detached.

        x: (B, C, H, W) in [0, 1]; y: (B,) int64; noise: like x, in [-1, 1], where the attack starts in its ball, or
        None. Unchecked, and nothing waits for the device.
        """
        if self.size is None:
            self.size = len(x)
            if self.compile:
                self._prepare(x, y, noise)
        if self.captures and len(x) == self.size:
            return self._replay(x, y, noise)
        return self._run(x, y, noise)

    def adversarial(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Tensor:
        """Return the examples that a batch is trained on, like x; the same where there is no attack."""
        if self.attack is None:
            return x
        twin = self.compiled[1] if self.compiled and len(x) == self.size else self.twin
        for mine, theirs in self.casts:
            mine.copy_(theirs)
        found, spec = x, self.attack
        with self._autocast():
            for found, _ in pgd_iterates(twin, x, y, eps=spec.eps, step=spec.step, steps=spec.steps, noise=noise):  # noqa: B007
                pass
        return found

    def _autocast(self) -> torch.autocast:
        # Without a cache, which a graph would capture the filling of.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=not self.captures
        )

    def _run(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Result:
        network = self.compiled[0] if self.compiled and len(x) == self.size else self.model
        x = self.adversarial(x, y, noise)
        self.model.train()
        with self._autocast():
            logits = network(x)
            loss = functional.cross_entropy(logits, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), logits.detach()

    def _prepare(self, *batch: Tensor | None) -> None:
        """Compile for this size of batch, or warn once and stay eager; the weights are left as they were."""
        compiled = (torch.compile(module, dynamic=False) for module in (self.model, self.twin))
        self.compiled = cast(tuple[nn.Module, nn.Module], tuple(compiled))
        try:
            with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # else it would go on eagerly, unsaid
                self._rehearse(*batch)
        except Exception as error:
            log.warning("%s; training goes on eagerly", _reason("torch.compile", error))
            self.compiled = None

    def _replay(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Result:
        lr = self.optimizer.param_groups[0]["lr"]
        if lr != self.lr:  # it is a constant of the graph
            self.graph, self.lr = None, lr
            try:
                self._rehearse(x, y, noise)
                self.graph = _Graph(self._run, x, y, noise)
            except Exception as error:
                log.warning("%s; training goes on without", _reason("a CUDA graph", error))
                self.captures = False
        return (self.graph or self._run)(x, y, noise)

    def _rehearse(self, *batch: Tensor | None) -> None:
        """Take steps and undo them, in place, for a graph knows the tensors by their addresses."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        before = [tensor.detach().clone() for tensor in tensors]
        known = {key: _momentum(state) for key, state in self.optimizer.state.items()}
        moments = {key: moment.clone() for key, moment in known.items() if moment is not None}
        try:
            with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
                _aside(self.device, lambda: [self._run(*cast(Any, batch)) for _ in range(_WARM_UP)])
        finally:
            with torch.no_grad():
                for tensor, old in zip(tensors, before, strict=True):
                    tensor.copy_(old)
                for key, state in self.optimizer.state.items():
                    if (moment := _momentum(state)) is not None:
                        moment.copy_(moments[key]) if key in moments else moment.zero_()  # 0 is what it begins as


@contextmanager
def deterministic_algorithms(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Have a GPU give the same bits each time for the block, if wanted, and put everything back; a CPU always does.

    It must begin before the GPU's first product of matrices. An operation that cannot raises RuntimeError.
    """
    if not wanted or device.type != "cuda":
        yield
        return
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")  # cuBLAS reads it once; without, its streams may share a workspace
    torch.backends.cudnn.benchmark = False  # for it chooses by times
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[_WORKSPACE]


class _Graph:
    """A step captured as one CUDA graph, for one size of batch and one learning rate."""

    def __init__(self, run: Callable[..., Result], *batch: Tensor | None) -> None:
        self.batch = [part if part is None else part.clone() for part in batch]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = run(*self.batch)

    def __call__(self, *batch: Tensor | None) -> Result:
        for mine, theirs in zip(self.batch, batch, strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        self.graph.replay()
        loss, logits = self.result
        return loss.clone(), logits.clone()  # the next replay overwrites them


def _twin(model: nn.Module, dtype: torch.dtype | None) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Copy the model for the attack: in eval mode, without gradients of its weights, and with the model's own tensors.

    Batch normalisation uses its running statistics there, as in every evaluation, and leaves them alone.
    With a dtype, the twin's matrices and kernels are of that type, instead of being converted in each of its passes;
    also returns these, each with the tensor that it is to be filled from before an attack.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    casts: list[tuple[Tensor, Tensor]] = []
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        mine.data = theirs.detach()
        if dtype is not None and mine.ndim > 1:
            mine.data = mine.data.to(dtype)
            casts.append((mine, theirs.detach()))
    for copied, own in zip(twin.buffers(), model.buffers(), strict=True):
        copied.data = own
    return twin, casts


def _aside(device: torch.device, run: Callable[[], object]) -> None:
    """Run on a CUDA stream of its own, as captures ask of what comes before them; on a CPU, just run."""
    if device.type != "cuda":
        run()
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)


def _momentum(state: dict[str, Any]) -> Tensor | None:
    return state.get("momentum_buffer")


def _reason(what: str, error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{what} is not possible here ({type(error).__name__}: {text[0] if text else 'no reason given'})"
