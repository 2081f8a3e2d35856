"""A single step of adversarial training, as fast as its device allows: attack, both passes and the update."""

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.attacks.pgd import Radius, pgd_iterates
from robreg.data.errors import describe_error
from robreg.kernels.choice import Attack, fastest, fused_attack, fused_network, is_narrow
from robreg.training.folding import fold_batch_norms

PRECISIONS = ("fp32", "bf16")
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WARM_UP_STEPS = 3  # before a capture, so that cuDNN and the compiler have made their choices

Result = tuple[Tensor, Tensor]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepAttack:
    """PGD on a batch; eps and step are in pixel units of [0, 1], as one number or one per channel, (C, 1, 1).

    clean_share: the weight of the loss on the clean examples (Kurakin et al. 2017); the rest is that of the adversarial
    ones.
    """

    eps: Radius
    step: Radius
    steps: int
    clean_share: float = 0.0


class TrainingStep:
    """Attack a batch, and train on its adversarial examples.

    precision: "bf16" computes both passes in bfloat16 (Kalamkar et al. 2019) with automatic mixed precision; weights,
    gradients, optimiser, normalisation, loss and the adversarial examples stay in fp32.
    compile: the forward and backward passes of full batches go through torch.compile, batch normalisation is folded
    into the convolutions before it in the attack, and, on a GPU, the whole step becomes one CUDA graph. In bf16 on a
    GPU, the attack on a residual network and its training pass run in kernels of their own (robreg.kernels) where these
    are faster, which is measured at the start if it is not known. What fails is left out after one warning; `how` says
    what was done. Without compile, the step is eager PyTorch, which in fp32 on a CPU is the reference.
    deterministic: a GPU uses only algorithms that produce bit-identical results, within `deterministic_algorithms`; a
    CPU always does. Nothing depends on a measurement then.
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
        """Set up steps on the model's device; the optimiser must hold the model's parameters."""
        if precision not in PRECISIONS:
            raise ValueError(f"training.precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        self.device = next(model.parameters()).device
        self.precision, self.compile, self.deterministic = precision, compile, deterministic
        self.captures = compile and self.device.type == "cuda"
        if precision == "bf16" or self.device.type == "cuda":
            model.to(memory_format=torch.channels_last)  # the layout that matrix units need, whatever the images have
        self.model, self.optimizer, self.attack = model, optimizer, attack
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.twin, self.updates = _make_twin(model, self.dtype, fold=compile)
        self.fuses = self.captures and precision == "bf16"
        self.kernels: Attack | None = None  # the attack on full batches, if it runs in kernels of its own
        self.fused: nn.Module | None = None  # the network of the training pass of full batches, if it has kernels
        self.size: int | None = None  # number of images in a full batch
        self.compiled: tuple[nn.Module, nn.Module] | None = None  # the compiled model and its compiled twin
        self.graph: _Graph | None = None  # replays the step of a full batch
        self.lr: float | None = None  # the learning rate that the graph was captured with
        if self.device.type == "cuda":
            # cuDNN times its algorithms and keeps the fastest, which pays because nearly all batches have one size.
            torch.backends.cudnn.benchmark = not deterministic

    @property
    def how(self) -> str:
        """How full batches are computed, such as "compiled, attack kernels, training kernels, CUDA graph"."""
        parts = {"attack kernels": self.kernels, "training kernels": self.fused, "CUDA graph": self.graph}
        used = (name for name, part in parts.items() if part is not None)
        return ", ".join(["compiled" if self.compiled else "eager", *used])

    def __call__(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Result:
        """Update the weights once; return the loss, a scalar, and the logits, (B, classes), both detached.

        With a share of clean examples, the loss is that of both parts, and the logits are of the adversarial examples.

        x: (B, C, H, W) in [0, 1]; y: (B,) int64; noise: like x, in [-1, 1], to start the attack at x + eps * noise, or
        None to start it at x. The inputs are not checked, and nothing waits for the device.
        """
        if self.size is None:
            self.size = len(x)
            self._prepare(x, y, noise)
        if self.captures and len(x) == self.size:
            return self._replay(x, y, noise)
        return self._run(x, y, noise)

    def adversarial(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Tensor:
        """Return the adversarial examples that a batch is trained on, like x; x itself without an attack."""
        if self.attack is None:
            return x
        for update in self.updates:
            update()
        if self.kernels and len(x) == self.size:
            return self.kernels(x, y, noise)
        twin = self.compiled[1] if self.compiled and len(x) == self.size else self.twin
        last, spec = x, self.attack
        with self._autocast():
            for last, _ in pgd_iterates(twin, x, y, eps=spec.eps, step=spec.step, steps=spec.steps, noise=noise):  # noqa: B007
                pass
        return last

    def _autocast(self) -> torch.autocast:
        # A CUDA graph would capture how the cache of converted weights is filled, so there is no cache with graphs.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=not self.captures
        )

    def _run(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Result:
        loss, logits = self._differentiate(x, self.adversarial(x, y, noise), y)
        self.optimizer.step()
        return loss.detach(), logits.detach()

    def _differentiate(self, x: Tensor, adversarial: Tensor, y: Tensor) -> Result:
        """Compute the loss, the logits and the gradients of all weights."""
        network = self.model
        if len(x) == self.size and self.fused is not None:
            network = self.fused
        elif len(x) == self.size and self.compiled:
            network = self.compiled[0]
        share = 0.0 if self.attack is None else self.attack.clean_share
        self.model.train()
        with self._autocast():
            if share:  # in one pass, so that batch normalisation sees both parts
                clean, logits = network(torch.cat([x, adversarial])).chunk(2)
                loss = share * functional.cross_entropy(clean, y) + (1 - share) * functional.cross_entropy(logits, y)
            else:
                logits = network(adversarial)
                loss = functional.cross_entropy(logits, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss, logits

    def _prepare(self, x: Tensor, y: Tensor, noise: Tensor | None) -> None:
        """Compile, and choose kernels, for batches like this one; the weights do not change."""
        if self.fuses and self.deterministic and is_narrow(self.twin):
            self.kernels = self._make_attack(x, y)
        if self.compile:
            self._try_to_compile(x, y, noise)
        if self.fuses and not self.deterministic:
            attack, fused = self._make_attack(x, y), self._make_fused(x, y)
            self._use_if_faster("the attack's kernels", "kernels", attack, lambda: self.adversarial(x, y, noise))
            what = "the kernels of the training pass"
            self._use_if_faster(what, "fused", fused, lambda: self._differentiate(x, x, y))

    def _make_attack(self, x: Tensor, y: Tensor) -> Attack | None:
        """Make the attack in kernels, if it is possible and right."""
        if self.attack is None:
            return None
        for update in self.updates:
            update()
        ball = {key: getattr(self.attack, key) for key in ("eps", "step", "steps")}
        return fused_attack(self.twin, x, y, dtype=self.dtype, tune=self._tunes(), **ball)

    def _make_fused(self, x: Tensor, y: Tensor) -> nn.Module | None:
        """Make the network of the training pass in kernels, if it is possible and right."""
        fused = fused_network(self.model, x, y, dtype=self.dtype, tune=self._tunes())
        if fused is None or not self.compiled:
            return fused
        return cast(nn.Module, torch.compile(fused, dynamic=False))

    def _tunes(self) -> bool:
        return self.device.type == "cuda" and self.precision == "bf16" and not self.deterministic

    def _use_if_faster(self, what: str, name: str, made: object, run: Callable[[], object]) -> None:
        """Set the attribute `name` to what was made if a call of `run` then takes less time than with None.

        what: in the plural, for the log. Does nothing if nothing was made.
        """
        if made is None:
            return

        def call(value: object) -> None:
            setattr(self, name, value)
            run()

        runs = {f"with {what}": partial(call, made), "without them": partial(call, None)}
        chosen = "without them"
        try:
            _on_side_stream(self.device, lambda: [warm_up() for warm_up in (*runs.values(),) * _WARM_UP_STEPS])
            chosen = fastest(runs, self.device)
        except Exception as error:
            log.warning("%s could not be timed here (%s); training continues without them", what, describe_error(error))
        setattr(self, name, None if chosen == "without them" else made)
        self.optimizer.zero_grad(set_to_none=True)

    def _try_to_compile(self, *batch: Tensor | None) -> None:
        """Compile for batches of this size, or warn once and stay eager; the weights do not change."""
        compiled = (torch.compile(module, dynamic=False) for module in (self.model, self.twin))
        self.compiled = cast(tuple[nn.Module, nn.Module], tuple(compiled))
        try:
            with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # or it would silently run eagerly
                self._warm_up(*batch)
        except Exception as error:
            log.warning("torch.compile is not possible here (%s); training continues eagerly", describe_error(error))
            self.compiled = None

    def _replay(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Result:
        """Replay the graph of the step, which is captured again for a new learning rate; without a graph, just run."""
        lr = self.optimizer.param_groups[0]["lr"]
        if lr != self.lr:  # the graph holds it as a constant
            self.graph, self.lr = None, lr
            try:
                self._warm_up(x, y, noise)
                self.graph = _Graph(self._run, x, y, noise)
            except Exception as error:
                log.warning(
                    "a CUDA graph is not possible here (%s); training continues without it", describe_error(error)
                )
                self.captures = False
        return (self.graph or self._run)(x, y, noise)

    def _warm_up(self, *batch: Tensor | None) -> None:
        """Take a few steps and undo them in place, because a graph refers to its tensors by their addresses."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        before = [tensor.detach().clone() for tensor in tensors]
        buffers = {key: _momentum_buffer(state) for key, state in self.optimizer.state.items()}
        momenta = {key: buffer.clone() for key, buffer in buffers.items() if buffer is not None}
        try:
            with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
                _on_side_stream(self.device, lambda: [self._run(*cast(Any, batch)) for _ in range(_WARM_UP_STEPS)])
        finally:
            with torch.no_grad():
                for tensor, old in zip(tensors, before, strict=True):
                    tensor.copy_(old)
                for key, state in self.optimizer.state.items():
                    if (buffer := _momentum_buffer(state)) is not None:
                        buffer.copy_(momenta[key]) if key in momenta else buffer.zero_()  # momentum starts at 0


@contextmanager
def deterministic_algorithms(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Make a GPU produce bit-identical results during the block if wanted, as a CPU always does; then undo all changes.

    Enter it before the GPU's first matrix product. An operation without a deterministic algorithm raises RuntimeError.
    """
    if not wanted or device.type != "cuda":
        yield
        return
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")  # cuBLAS reads it once; by default, its streams may share one
    torch.backends.cudnn.benchmark = False  # it would choose algorithms by their measured times
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[_WORKSPACE]


class _Graph:
    """A step captured as one CUDA graph, for one batch size and one learning rate."""

    def __init__(self, run: Callable[..., Result], *batch: Tensor | None) -> None:
        self.batch = [part if part is None else part.clone() for part in batch]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = run(*self.batch)

    def __call__(self, *batch: Tensor | None) -> Result:
        for captured, given in zip(self.batch, batch, strict=True):
            if captured is not None and given is not None:
                captured.copy_(given)
        self.graph.replay()
        loss, logits = self.result
        return loss.clone(), logits.clone()  # the next replay overwrites them


def _make_twin(model: nn.Module, dtype: torch.dtype, *, fold: bool) -> tuple[nn.Module, list[Callable[[], None]]]:
    """Copy the model for the attack: in eval mode, without gradients of its weights, sharing the model's tensors.

    Its batch normalisation uses the running statistics, as in every evaluation, and does not change them.
    Where the twin has weights of its own, the functions that are returned compute them from the model's, and must be
    called before an attack: matrices and kernels of another dtype, so that they are not converted in every pass, and
    convolutions into which batch normalisation is folded.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    for copied, original in zip(twin.parameters(), model.parameters(), strict=True):
        copied.data = original.detach()
    for copied_buffer, buffer in zip(twin.buffers(), model.buffers(), strict=True):
        copied_buffer.data = buffer
    updates = fold_batch_norms(twin, dtype) if fold else []
    for parameter in twin.parameters():
        if dtype != torch.float32 and parameter.ndim > 1 and parameter.dtype != dtype:
            source, parameter.data = parameter.data, parameter.data.to(dtype)
            updates.append(partial(_copy, parameter.data, source))
    return twin, updates


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def _on_side_stream(device: torch.device, run: Callable[[], object]) -> None:
    """Call run on a separate CUDA stream, as warm-up steps before a capture require; on a CPU, just call it."""
    if device.type != "cuda":
        run()
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)


def _momentum_buffer(state: dict[str, Any]) -> Tensor | None:
    return state.get("momentum_buffer")
