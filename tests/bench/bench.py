"""Benchmark the package against other implementations in the same process: `make bench`.

Nothing is timed before its results were asserted to be equal. Machines are shared and clocks drift, so the two
implementations are timed in turns, and the result is the median of the ratios of their times.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import foolbox
import numpy as np
import psutil
import torch
import torchattacks
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from robreg.attacks import evaluation
from robreg.attacks.pgd import pgd
from robreg.data.augmentation import random_crop_flip
from robreg.data.dataset import to_float
from robreg.networks import build, classifier, fixup_resnet
from robreg.spectra import projection, singular_values
from robreg.spectra.layers import list_layers
from robreg.training.step import StepAttack, TrainingStep

ROOT = Path(__file__).parents[2]
EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
SETTINGS = StepAttack(EPS, STEP, STEPS)
WEAK = StepAttack(EPS / 16, STEP / 16, STEPS)  # leaves some examples correctly classified


@dataclass
class Row:
    """One comparison: median seconds, and the ratio of the peer's time to ours (median and quartiles of the pairs)."""

    what: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    goal: str
    equal: str


def compare(what: str, peer: str, *, ours: Callable[[], object], theirs: Callable[[], object], **words) -> Row:
    """Time two functions in turns, after one untimed call of each."""
    repeat = words.pop("repeat", 7)
    pairs = []
    for number in range(repeat + 1):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        seconds = {function: _seconds(function) for function in order}
        if number:
            pairs.append((seconds[ours], seconds[theirs]))
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    low, _, high = statistics.quantiles(ratios, n=4) if repeat > 1 else ratios * 3
    mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Row(what, peer, mine, other, statistics.median(ratios), low, high, words.get("goal", ""), words["equal"])


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def make_network(depth: int = 56, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> classifier.Classifier:
    """Make a Fixup ResNet with random weights, because all its logits are 0 at initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        channels = shape[0]
        model = build.build_network(
            f"resnet{depth}", width=16, shape=shape, classes=10, mean=[0.5] * channels, std=[0.25] * channels
        )
        for block in model.modules():
            if isinstance(block, fixup_resnet.ResidualBlock):  # so that branches hardly change the size of the sum
                nn.init.kaiming_normal_(block.conv1.weight)
                nn.init.normal_(block.conv2.weight, std=0.3 * (2 / (9 * block.conv2.in_channels)) ** 0.5)
        nn.init.normal_(model.network.linear.weight, std=2)
    with torch.no_grad():  # so that all classes are predicted
        model.network.linear.bias -= model(_smooth(256, shape)).mean(0)
    return model.eval()


def _smooth(n: int, shape: tuple[int, int, int]) -> Tensor:
    coarse = torch.rand(n, shape[0], 4, 4, generator=torch.Generator().manual_seed(1))
    images = functional.interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 1)
    return to_float((255 * images).round().to(torch.uint8))  # the memory layout of training and evaluation


def make_batch(model: nn.Module, n: int, shape: tuple[int, int, int] = (3, 32, 32)) -> tuple[Tensor, Tensor]:
    """Draw smooth images, labelled with the model's predictions, so that all are classified correctly."""
    x = _smooth(n, shape)
    with torch.no_grad():
        return x, model(x).argmax(1)


def make_step(model: nn.Module, precision: str = "fp32", **options) -> TrainingStep:
    """Make a training step of the package for a model."""
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return TrainingStep(model, sgd, attack=SETTINGS, precision=precision, **options)


def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor, spec: StepAttack = SETTINGS) -> Tensor:
    """Attack with torchattacks' PGD, starting at the image itself."""
    return torchattacks.PGD(model, eps=spec.eps, alpha=spec.step, steps=spec.steps, random_start=False)(x, y)


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Attack with foolbox's PGD, starting at the image itself."""
    other = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return other.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=EPS)


def robustness_step(model: nn.Module, optimizer: torch.optim.Optimizer, *, use_best: bool) -> Callable[..., float]:
    """Return a training step that works as in MadryLab's robustness library.

    It follows Attacker and AttackerModel in attacker.py, and _model_loop in train.py.
    """

    def attacked(x: Tensor, y: Tensor) -> Tensor:
        original, best, best_loss = x, x, None
        for _ in range(STEPS):
            x = x.clone().detach().requires_grad_()
            losses = functional.cross_entropy(model(x), y, reduction="none")
            (gradient,) = torch.autograd.grad(torch.mean(losses), [x])
            with torch.no_grad():
                if use_best:
                    best, best_loss = replace_best(losses.detach(), best_loss, x, best)
                x = x + torch.sign(gradient) * STEP
                x = torch.clamp(original + torch.clamp(x - original, -EPS, EPS), 0, 1)
        if not use_best:
            return x.clone().detach()
        losses = functional.cross_entropy(model(x), y, reduction="none")
        return replace_best(losses.detach(), best_loss, x, best)[0].detach()

    def replace_best(loss: Tensor, best_loss: Tensor | None, x: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        if best_loss is None:
            return x.clone().detach(), loss.clone().detach()
        better = best_loss < loss
        best[better], best_loss[better] = x[better].clone().detach(), loss[better]
        return best, best_loss

    def step(x: Tensor, y: Tensor) -> float:
        model.eval()
        x = attacked(x, y)
        model.train()
        logits = model(x)
        loss = functional.cross_entropy(logits, y)
        value = loss.item()
        _, predicted = logits.topk(1)
        (predicted.t() == y).float().sum().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return value

    return step


def bench_attack(n: int) -> list[Row]:
    """Compare PGD-10 on a ResNet-56."""
    model = make_network()
    x, y = make_batch(model, n)
    plain = x.contiguous()  # the layout that a DataLoader gives; in our layout, sums have another order
    ours = pgd(model, x, y, eps=EPS, step=STEP, steps=STEPS)
    assert all((peer(model, x, y) - ours).abs().max() <= 1e-6 for peer in (torchattacks_pgd, foolbox_pgd)), "images"
    rows = [
        compare(
            f"attack: PGD-10, ResNet-56, batch {n}, fp32",
            name,
            ours=lambda: pgd(model, x, y, eps=EPS, step=STEP, steps=STEPS),
            theirs=partial(peer, model, plain, y),
            equal="adversarial images within 1e-6 (of one layout)",
            goal=goal,
            repeat=5,
        )
        for name, peer, goal in (("torchattacks", torchattacks_pgd, "≥ 1.0"), ("foolbox", foolbox_pgd, ""))
    ]
    half = make_step(make_network(), "bf16")
    many, labels = make_batch(model, 4 * n)
    robust = [_accuracy(model, adversarial, labels) for adversarial in _both(model, half, many, labels)]
    assert abs(robust[0] - robust[1]) <= 1, f"robust accuracy: {robust}"
    assert 10 < robust[1] < 90, f"{robust[1]} % robust says nothing"
    row = compare(
        f"attack: PGD-10, ResNet-56, batch {n}, bf16",
        "torchattacks, fp32",
        ours=lambda: half.adversarial(x, y, None),
        theirs=lambda: torchattacks_pgd(model, plain, y),
        equal=f"robust accuracy {robust[0]:.1f} and {robust[1]:.1f} %",
        goal="≥ 1.7",
        repeat=5,
    )
    return [*rows, row]


def _both(model: nn.Module, half: TrainingStep, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    half.attack = WEAK
    found = half.adversarial(x, y, None)
    half.attack = SETTINGS
    return found, torchattacks_pgd(model, x, y, WEAK)


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * float((model.eval()(x).argmax(1) == y).double().mean())


def bench_training(n: int) -> list[Row]:
    """Compare a whole training step: attack, forward and backward pass, update."""
    x, y = make_batch(make_network(), n)
    rows = []
    for precision, goal in (("fp32", "≥ 1.2"), ("bf16", "≥ 2")):
        ours = make_step(make_network(), precision)
        other = make_network()
        sgd = torch.optim.SGD(other.parameters(), lr=1e-3, momentum=0.9)
        theirs = robustness_step(other, sgd, use_best=False)
        losses = [(float(ours(x, y)[0]), theirs(x, y)) for _ in range(3)]
        plain = x.contiguous()  # the layout that a DataLoader gives
        worst = max(abs(mine / their - 1) for mine, their in losses)
        assert worst <= (1e-5 if precision == "fp32" else 2e-2), losses
        for use_best in (True, False):
            theirs = robustness_step(other, sgd, use_best=use_best)
            row = compare(
                f"training step: PGD-10, ResNet-56, batch {n}, {precision}",
                f"robustness' loop, fp32, use_best={use_best}" + " (its default)" * use_best,
                ours=partial(ours, x, y),
                theirs=partial(theirs, plain, y),
                equal=f"three losses within {worst:.0e}" + ", of use_best=False" * use_best,
                goal=goal,
                repeat=5,
            )
            rows.append(row)
    return rows


def bench_evaluation(n: int) -> list[Row]:
    """Compare the adversarial accuracy on a split of which the network classifies two thirds correctly."""
    model = make_network()
    x, y = make_batch(model, n)
    images = (255 * x).round().to(torch.uint8)
    y = torch.where(torch.arange(n) % 3 > 0, y, (y + 1) % 10)  # a third is misclassified
    spec = {
        "eps": 255 * WEAK.eps,
        "step": 255 * WEAK.step,
        "steps": STEPS,
        "space": "pixel",
        "start": "clean",
        "seed": 0,
        "restarts": 1,
    }

    def theirs() -> tuple[int, int]:
        pixels = to_float(images).contiguous()
        with torch.no_grad():
            correct = model(pixels).argmax(1) == y
        attacked = torchattacks_pgd(model, pixels, y, WEAK)
        with torch.no_grad():
            robust = correct & (model(attacked).argmax(1) == y)
        return int(correct.sum()), int(robust.sum())

    found = evaluation.evaluate(model, images, y, spec, batch=n)
    assert (found["n_correct"], found["n_robust"]) == theirs()
    return [
        compare(
            f"evaluation: PGD-10 on {n} images, two thirds of them right",
            "torchattacks on all",
            ours=lambda: evaluation.evaluate(model, images, y, spec, batch=n),
            theirs=theirs,
            equal=f"{found['n_correct']} correct, {found['n_robust']} robust",
            repeat=3,
        )
    ]


def sedghi(kernel: np.ndarray, size: int) -> np.ndarray:
    """Return all singular values with the numpy code of Sedghi, Gupta and Long (2019)."""
    transforms = np.fft.fft2(kernel.transpose(2, 3, 1, 0), (size, size), axes=[0, 1])
    return np.linalg.svd(transforms, compute_uv=False)


def bench_spectra(*, wide: bool) -> list[Row]:
    """Compare the singular values (complex128) of ResNet-56's layers and of a wide layer.

    Layers with a stride are left out, because the code of Sedghi et al. does not support strides.
    """
    layers = [
        (layer.kernel.double(), layer.height)
        for layer in list_layers(make_network(), (3, 32, 32))
        if layer.kind == "conv" and layer.stride == 1
    ]
    generator = torch.Generator().manual_seed(0)
    one = [(torch.randn(128, 128, 3, 3, dtype=torch.float64, generator=generator) / 34, 56)]
    rows = []
    for what, some, repeat in (("ResNet-56", layers, 3), ("128 x 128 x 3 x 3 at 56 x 56", one, 1))[: 1 + wide]:
        worst = 0.0
        for kernel, size in some if len(some) > 1 else [(some[0][0][:32, :32], some[0][1])]:
            sigma, count = singular_values.circular_singular_values(kernel, size, size)
            wanted = np.sort(sedghi(kernel.numpy(), size).ravel())
            worst = max(worst, float(np.abs(np.sort(np.repeat(sigma, count)) - wanted).max()))
        assert worst <= 1e-10, worst
        row = compare(
            f"spectra: {what}",
            "numpy's fft2 and svd (Sedghi et al. 2019)",
            ours=lambda: [singular_values.circular_singular_values(kernel, size, size) for kernel, size in some],  # noqa: B023
            theirs=lambda: [sedghi(kernel.numpy(), size) for kernel, size in some],  # noqa: B023
            equal=f"within {worst:.0e}" + " (of its first 32 channels)" * (len(some) == 1),
            goal="≥ 3",
            repeat=repeat,
        )
        rows.append(row)
    return rows


def bench_projection(n: int) -> list[Row]:
    """Compare the projection after an epoch of -sn 1 with that epoch, whose time follows from that of a step."""
    rows = []
    for what, depth, shape, examples, batch in (
        ("ResNet-56, 50,000 images", 56, (3, 32, 32), 50_000, n),
        ("ResNet-8, digits", 8, (1, 8, 8), 1_297, 64),
    ):
        model = make_network(depth, shape)
        x, y = make_batch(model, batch, shape)
        layers, step = list_layers(model, shape), make_step(model)
        assert max(projection.project(layers, 1.0, "exact")) <= 1, "a norm above the bound"
        step(x, y)
        step_seconds = statistics.median(_seconds(lambda: step(x, y)) for _ in range(3))  # noqa: B023
        seconds = []
        for _ in range(3):
            with torch.no_grad():  # about as much as an epoch changes the weights
                for parameter in model.parameters():
                    parameter.add_(0.003 * torch.randn_like(parameter))
            seconds.append(_seconds(lambda: projection.project(layers, 1.0, "exact")))  # noqa: B023
        epoch, mine = step_seconds * examples / batch, statistics.median(seconds)
        share = epoch / mine
        words = {"goal": "≥ 10", "equal": "norms at most 1"}
        rows.append(Row(f"projection: {what}", "its epoch", mine, epoch, share, share, share, **words))
    return rows


def bench_data(n: int) -> list[Row]:
    """Compare loading and augmenting the images of an epoch."""
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    transform = v2.Compose(
        [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    )

    class Each(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return n

        def __getitem__(self, index: int) -> Tensor:
            return transform(images[index])

    def ours() -> Tensor:
        order = torch.randperm(n, generator=generator)
        return sum(
            to_float(random_crop_flip(images[index], pad=4, generator=generator)).sum() for index in order.split(256)
        )

    loader = torch.utils.data.DataLoader(Each(), batch_size=256, shuffle=True, num_workers=2, persistent_workers=True)
    few = to_float(images[:16])
    padded = functional.pad(few, (4, 4, 4, 4))
    crops = torch.stack([padded[:, :, down : down + 32, right : right + 32] for down in range(9) for right in range(9)])
    shown = to_float(random_crop_flip(images[:16], pad=4, generator=torch.Generator().manual_seed(1)))
    matches = (
        (torch.cat([crops, crops.flip(4)]) == shown).flatten(2).all(2).sum(0)
    )  # number of each image's 162 crops that match
    assert bool((matches == 1).all()), "an image is no crop of its original, nor a mirrored one"
    return [
        compare(
            f"data: {n} images, crop and flip, batches of 256",
            "torchvision's transforms in two workers",
            ours=ours,
            theirs=lambda: sum(batch.sum() for batch in loader),
            equal="each of 16 images is one of its 162 crops",
            repeat=3,
        )
    ]


def bench_workflow() -> list[Row]:
    """Time what happens before anything is computed: the workflow's plan and the imports of its jobs."""

    def run(*command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)

    python, tool = sys.executable, str(Path(sys.executable).with_name("snakemake"))
    words = {"equal": "", "repeat": 3}
    return [
        compare(
            "workflow: plan of the paper's 40 runs, `snakemake -n all`",
            "`snakemake --version`",
            ours=lambda: run(tool, "-n", "all"),
            theirs=lambda: run(tool, "--version"),
            goal="at most 5 s",
            **words,
        ),
        compare(
            "workflow: start of a job that imports the package's training",
            "`import torch`",
            ours=lambda: run(python, "-c", "import robreg.training.loop"),
            theirs=lambda: run(python, "-c", "import torch"),
            **words,
        ),
        compare(
            "workflow: start of a job of tables alone",
            "`import torch`",
            ours=lambda: run(python, "-c", "import robreg.tables.parquet"),
            theirs=lambda: run(python, "-c", "import torch"),
            **words,
        ),
    ]


def bench_compiled(n: int) -> list[Row]:
    """Compare a training step with torch.compile to an eager one; it takes minutes, so it must be named explicitly."""
    x, y = make_batch(make_network(), n)
    eager, compiled = make_step(make_network(), "bf16"), make_step(make_network(), "bf16", compile=True)
    losses = [(float(compiled(x, y)[0]), float(eager(x, y)[0])) for _ in range(3)]
    worst = max(abs(mine / their - 1) for mine, their in losses)
    assert compiled.how == "compiled", compiled.how
    assert worst <= 2e-2, losses
    return [
        compare(
            f"training step: PGD-10, ResNet-56, batch {n}, bf16, compiled",
            "the same, eager",
            ours=partial(compiled, x, y),
            theirs=partial(eager, x, y),
            equal=f"three losses within {worst:.0e}",
            repeat=5,
        )
    ]


CASES = {
    "attack": lambda: bench_attack(64),
    "training": lambda: bench_training(64),
    "evaluation": lambda: bench_evaluation(96),
    "spectra": lambda: bench_spectra(wide=True),
    "projection": lambda: bench_projection(64),
    "data": lambda: bench_data(5_000),
    "workflow": bench_workflow,
    "compiled": lambda: bench_compiled(64),
}


def machine() -> dict[str, str]:
    """Return the machine and the versions that the times belong to."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "machine": f"{model}, {torch.get_num_threads()} of {psutil.cpu_count()} CPUs, {capability}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, torchattacks {torchattacks.__version__}, foolbox {foolbox.__version__}, "
        f"numpy {np.__version__}",
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def table(rows: list[Row]) -> str:
    """Return rows as a Markdown table."""
    head = ["what", "peer", "ours, s", "peer, s", "peer / ours (quartiles)", "goal", "equal before it was timed"]
    lines = [
        [
            row.what,
            row.peer,
            f"{row.ours:.3g}",
            f"{row.theirs:.3g}",
            f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})",
            row.goal,
            row.equal,
        ]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def main() -> None:
    """Run the named cases, or all except compiled; write a Markdown table, and a JSON file in the same folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all except compiled")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/bench")
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, psutil.cpu_count()))
    torch.manual_seed(0)
    rows = []
    for name in arguments.cases or [name for name in CASES if name != "compiled"]:
        begin = time.perf_counter()
        rows += CASES[name]()
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    text = "\n".join([*(f"{key}: {value}  " for key, value in machine().items()), "", table(rows)])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text + "\n")
    arguments.out.with_suffix(".json").write_text(json.dumps({**machine(), "rows": [asdict(row) for row in rows]}))
    print(text)


if __name__ == "__main__":
    main()
