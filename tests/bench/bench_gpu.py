"""Benchmark training on a GPU against an eager loop in the same process: `make bench-gpu`.

It needs the package and what it imports, but not Snakemake. The part `training` asserts
that the losses equal those of the eager loop before it times a step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from robreg.attacks import apgd, evaluation
from robreg.attacks.pgd import draw_noise
from robreg.data.augmentation import random_crop_flip
from robreg.data.dataset import to_float
from robreg.measures import gradient_masking, loss_variation, perturbation_spread
from robreg.networks import build, classifier, fixup_resnet
from robreg.networks.replayed import replayed
from robreg.runs.settings import run_settings
from robreg.spectra.layers import list_layers
from robreg.spectra.projection import project
from robreg.training.step import StepAttack, TrainingStep, deterministic_algorithms

ROOT = Path(__file__).parents[2]
EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
EPOCHS, EXAMPLES = 200, 50_000
OTHERS = {"resnet110": (32, True), "wrn50": (56, False)}  # size of the images, and deterministic, as in config.yaml
TRAINING_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "tiny-imagenet": 100_000}
VARIANTS = {  # precision, compile, deterministic
    "fp32": ("fp32", False, False),
    "fp32, compiled": ("fp32", True, False),
    "bf16": ("bf16", False, False),
    "bf16, compiled": ("bf16", True, False),
    "bf16, compiled, deterministic": ("bf16", True, True),
}


def make_network(arch: str, device: torch.device, shape: tuple[int, int, int], classes: int) -> classifier.Classifier:
    """Make the same network at every call, with random weights, because Fixup initialisation gives logits of 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width = 64 if arch == "wrn50" else 16
        model = build.build_network(arch, width=width, shape=shape, classes=classes, mean=[0.5] * 3, std=[0.25] * 3)
        for block in model.modules():
            if isinstance(block, fixup_resnet.ResidualBlock):
                nn.init.normal_(block.conv2.weight, std=0.1 * (2 / (9 * block.conv2.in_channels)) ** 0.5)
        if arch != "wrn50":
            nn.init.normal_(model.network.linear.weight, std=0.5)
    return model.to(device)


def torchattacks_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., Tensor]:
    """Return an eager fp32 training step on the adversarial examples of torchattacks' PGD.

    A copy of its code is used if torchattacks is not installed, or if noise for the start is given.
    """
    try:
        import torchattacks
    except ImportError:
        torchattacks = None

    def attack(x: Tensor, y: Tensor, start: Tensor) -> Tensor:  # copied from torchattacks 3.5.1, attacks/pgd.py
        adversarial = torch.clamp(start, 0, 1).detach()
        for _ in range(STEPS):
            adversarial.requires_grad = True
            cost = functional.cross_entropy(model(adversarial), y)
            gradient = torch.autograd.grad(cost, adversarial, retain_graph=False, create_graph=False)[0]
            adversarial = adversarial.detach() + STEP * gradient.sign()
            adversarial = torch.clamp(x + torch.clamp(adversarial - x, -EPS, EPS), 0, 1).detach()
        return adversarial

    def step(x: Tensor, y: Tensor, noise: Tensor | None = None) -> Tensor:
        model.eval()
        if noise is not None or torchattacks is None:
            start = x + EPS * (2 * torch.rand_like(x) - 1 if noise is None else noise)
            adversarial = attack(x, y, start)
        else:
            adversarial = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS)(x, y)
        model.train()
        loss = functional.cross_entropy(model(adversarial), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step.name = f"torchattacks {torchattacks.__version__}" if torchattacks else "torchattacks' PGD, written out"
    return step


def plain_layer(x: Tensor, weight: Tensor, shortcut: Tensor, stride: int) -> Tensor:
    """Do as the kernel of a convolution with a shortcut and ReLU, in three."""
    return functional.relu(functional.conv2d(x, weight, stride=stride, padding=1) + shortcut)


def read_config() -> dict:
    """Read config.yaml, without the validation that the workflow's tests do."""
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def project_hours(config: dict, times: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the GPU-hours of every training of the study `paper`, by run, from the times of steps.

    times: for each architecture, the milliseconds of a step with PGD-10 and of its training pass.
    """
    from robreg.runs.config import run_names  # needs jsonschema, which no other part does

    rows = {}
    for dataset, variant in run_names(config, "paper"):
        settings = run_settings(config, dataset, variant)
        training, attack, of_arch = settings["training"], settings["train_attack"], times[settings["arch"]]
        one_step = (of_arch["ms_per_step"] - of_arch["ms_training_pass"]) / STEPS
        ms = of_arch["ms_training_pass"] + one_step * (attack["steps"] if attack else 0)
        batches = -(-TRAINING_IMAGES[settings["data"]["kind"]] // training["batch_size"])
        hours = ms * batches * training["epochs"] / 3.6e6
        rows[f"{dataset}/{variant}"] = {"ms_per_step": ms, "hours": hours}
    return rows


class Bench:
    """The measurements on one device; tiny makes all sizes small, to test the code only."""

    def __init__(self, device: torch.device, *, tiny: bool) -> None:
        """Draw a data set of random images of the size of CIFAR-10's."""
        self.device, self.tiny = device, tiny
        self.batch, self.batches = (8, 2) if tiny else (256, 20)
        self.arch = "resnet8" if tiny else "resnet56"
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(1024, 3, 4, 4, generator=generator)
        smooth = functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
        self.images = (255 * smooth).round().to(torch.uint8).to(device)
        self.labels = torch.randint(10, (1024,), generator=generator).to(device)
        self.generator = torch.Generator(device).manual_seed(0)
        self.times: dict[str, dict[str, float]] = {}  # by architecture, as project_hours needs them
        self.rate: float | None = None

    def make(
        self, arch: str, precision: str, compiled: bool, deterministic=False, shape=(3, 32, 32), classes: int = 10
    ) -> TrainingStep:
        """Make a training step of the package with a new network."""
        model = make_network(arch, self.device, shape, classes)
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=self.device.type == "cuda" or None)
        options = {"precision": precision, "compile": compiled, "deterministic": deterministic}
        torch._dynamo.reset()  # torch compiles a module's code at most eight times, then silently runs it eagerly
        return TrainingStep(model, sgd, attack=StepAttack(EPS, STEP, STEPS), **options)

    def as_trained(self, name: str) -> AbstractContextManager[None]:
        """Choose deterministic algorithms or not, as the training of a variant does (not for the eager loop)."""
        return deterministic_algorithms(self.device, wanted=VARIANTS.get(name, (None, None, False))[2])

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a batch as an epoch does: select, augment and scale images, and draw the noise of the starts."""
        index = torch.randint(len(self.images), (self.batch,), generator=self.generator, device=self.device)
        x = to_float(random_crop_flip(self.images[index], pad=4, generator=self.generator))
        return x, self.labels[index], draw_noise(x, self.generator)

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the mean seconds per call; the device is waited for only before the first and after the last call."""
        run()
        self.wait()
        begin = time.perf_counter()
        for _ in range(self.batches):
            run()
        self.wait()
        return (time.perf_counter() - begin) / self.batches

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def check(self, ours: TrainingStep, tolerance: float) -> float:
        """Assert that three losses equal those of the eager loop from the same starts.

        Returns the largest relative difference.
        """
        model = make_network(self.arch, self.device, (3, 32, 32), 10)
        theirs = torchattacks_step(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))
        batches = [self.draw() for _ in range(3)]
        difference = max(abs(float(ours(*batch)[0]) / float(theirs(*batch)) - 1) for batch in batches)
        assert difference <= tolerance, f"losses differ by {difference:.1e}, more than {tolerance:.0e}"
        return difference

    def training(self) -> dict:
        """Time a step of each variant and of the eager loop, in turns, and extrapolate to all epochs."""
        steps, difference, first = {}, {}, {}
        for name, options in VARIANTS.items():
            begin = time.perf_counter()
            with self.as_trained(name):
                steps[name] = self.make(self.arch, *options)
                difference[name] = self.check(steps[name], 1e-3 if options[0] == "fp32" else 3e-2)
            first[name] = time.perf_counter() - begin
        model = make_network(self.arch, self.device, (3, 32, 32), 10)
        eager = torchattacks_step(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))
        times = {name: [] for name in (*steps, "peer")}
        for _ in range(3):
            for name, step in steps.items():
                with self.as_trained(name):
                    times[name].append(self.seconds(lambda: step(*self.draw())))  # noqa: B023
            times["peer"].append(self.seconds(lambda: eager(*self.draw()[:2])))
        per_epoch, flop = EXAMPLES / self.batch, self.flop(self.arch, 32)
        rows = {}
        for name, values in times.items():
            minutes = statistics.median(values) * per_epoch * EPOCHS / 60
            ratio = statistics.median(peer / mine for peer, mine in zip(times["peer"], values, strict=True))
            rows[name] = {
                "ms_per_step": 1e3 * statistics.median(values),
                "images_per_s": self.batch / statistics.median(values),
                "minutes_of_200_epochs": minutes,
                "peer_over_ours": ratio,
                "share_of_bf16_peak": flop / self.peak() / statistics.median(values),
                "loss_differs_by": difference.get(name, 0.0),
                "seconds_before_the_first_epoch": first.get(name, 0.0),
                "how": steps[name].how if name in steps else eager.name,
            }
        chosen = "bf16, compiled, deterministic"  # as in config.yaml
        with self.as_trained(chosen):
            passing = self.training_pass(steps[chosen], *self.draw()[:2])
        self.times["resnet56"] = {"ms_per_step": rows[chosen]["ms_per_step"], "ms_training_pass": passing}
        return {"bf16_tflops": self.peak() / 1e12, "ms_training_pass": passing, "steps": rows}

    def training_pass(self, step: TrainingStep, x: Tensor, y: Tensor) -> float:
        """Return the milliseconds of a step's training pass, which is a step of standard training."""
        passing = self.replayed(lambda: step._differentiate(x, x, y))
        step.optimizer.zero_grad(set_to_none=True)
        return 1e3 * passing

    def peak(self) -> float:
        """Return the rate of a large bf16 matrix product, in FLOP per second."""
        if self.rate is None:
            n = 256 if self.tiny else 8192
            one, other = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
            self.rate = 2 * n**3 / self.seconds(lambda: one @ other)
        return self.rate

    def flop(self, arch: str, size: int) -> float:
        """Return the FLOP of a step: forward passes and input gradients of the attack, and a training pass."""
        model = make_network(arch, torch.device("cpu"), (3, size, size), 10).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, size, size))
        return float(counter.get_total_flops()) * (2 * STEPS + 3) * self.batch

    def profile(self) -> list[dict]:
        """Return the 15 kernels that take the most time in the variant "bf16, compiled"."""
        step = self.make(self.arch, "bf16", compiled=True)
        for _ in range(3):
            step(*self.draw())
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        with torch.profiler.profile(activities=kinds) as profiled:
            for _ in range(2):
                step(*self.draw())
            self.wait()
        spent = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, spent))
        total = sum(getattr(event, spent) for event in events)
        rows = [(event.key[:90], getattr(event, spent) / total, event.count) for event in events[:15]]
        return [dict(zip(("kernel", "share", "calls"), row, strict=True)) for row in rows]

    def projection(self) -> dict:
        """Time the projection after an epoch of -sn 1."""
        model = make_network(self.arch, self.device, (3, 32, 32), 10)
        layers = list_layers(model, (3, 32, 32))
        project(layers, 1.0, "exact")
        times = []
        for _ in range(3):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.003 * torch.randn_like(parameter))
            begin = time.perf_counter()
            assert max(project(layers, 1.0, "exact")) <= 1
            self.wait()
            times.append(time.perf_counter() - begin)
        return {"seconds": statistics.median(times), "threads": torch.get_num_threads()}

    def others(self) -> dict:
        """Time a step of the paper's other networks."""
        return {arch: self.time_step(arch, *rest) for arch, rest in OTHERS.items()}

    def time_step(self, arch: str, size: int, deterministic: bool) -> dict:
        """Time a step with random images of this size, and its training pass."""
        small, classes = "resnet14" if self.tiny else arch, 200 if arch == "wrn50" else 10
        step = self.make(small, "bf16", True, deterministic, shape=(3, size, size), classes=classes)
        x = torch.rand(self.batch, 3, size, size, generator=self.generator, device=self.device)
        y, noise = torch.randint(classes, (self.batch,), device=self.device), 2 * x - 1
        with deterministic_algorithms(self.device, wanted=deterministic):
            taken = self.seconds(lambda: step(x, y, noise))
            passing = self.training_pass(step, x, y)
        self.times[arch] = {"ms_per_step": 1e3 * taken, "ms_training_pass": passing}
        share = self.flop(small, size) / self.peak() / taken
        return {**self.times[arch], "images_per_s": self.batch / taken, "share_of_bf16_peak": share, "how": step.how}

    def paper(self) -> dict:
        """Project the GPU-hours of all trainings of the study `paper`, from the steps that were timed, or now."""
        for arch, rest in {"resnet56": (32, True), **OTHERS}.items():
            if arch not in self.times:
                self.time_step(arch, *rest)
        rows = project_hours(read_config(), self.times)
        return {"hours": sum(row["hours"] for row in rows.values()), "runs": rows}

    def measures(self) -> dict:
        """Time the measures that attack a network of c10, on images of which none is misclassified, so at most as long.

        Those of all test images are timed on some of them. The labels are the network's own predictions.
        """
        config = read_config()
        settings, batch = run_settings(config, "c10", "ar8"), config["datasets"]["c10"]["evaluation_batch"]
        network = make_network(self.arch, self.device, (3, 32, 32), 10).eval().requires_grad_(False)
        count = 4 if self.tiny else 1000
        images = self.images[:count].cpu()
        with torch.no_grad():
            labels = network(to_float(images.to(self.device))).argmax(1).cpu()
        right, batch = torch.ones(count, dtype=torch.bool), 2 if self.tiny else batch
        steps = {"steps": 1, "more_steps": 1, "restarts": 1} if self.tiny else {}
        model = replayed(network, batch)

        def attack(spec: dict) -> None:
            evaluation.evaluate(model, images, labels, {**spec, **steps}, batch=batch, correct=right)

        def vary() -> None:
            variation, ratio = settings["loss_variation"], settings["loss_variation"]["relative_step"]
            for eps in variation["eps"]:
                spec = {**variation, "eps": eps, "step": ratio * eps, **steps}
                loss_variation.measure(model, images, labels, spec, batch=batch)

        def mask() -> None:
            masking = {**settings["masking"], **steps}
            spec = gradient_masking.AttackedNetwork(model, images, labels, right, masking, batch=batch)
            gradient_masking.masking_checks(spec)

        strong, spread = settings["strong_attack"], {**settings["spread"], **steps}
        attacks_of_radii = 1 + len(settings["pixel_radii"]["eps"])  # all of PGD-10
        all_images = 10_000 / count
        runs = {
            "attacks": (lambda: attack(settings["evaluation"]), attacks_of_radii * all_images),
            "lossvar": (vary, all_images),
            "apgd": (
                lambda: apgd.evaluate(
                    model, images, labels, {**strong, **steps}, losses=list(apgd.LOSSES), batch=batch, correct=right
                ),
                strong["n"] / count,
            ),
            "masking": (mask, settings["masking"]["n"] / count),
            "spread": (
                lambda: perturbation_spread.measure(model, images, labels, spread, batch=batch),
                spread["n"] / count,
            ),
        }
        rows = {}
        for name, (run, factor) in runs.items():
            self.wait()
            begin = time.perf_counter()
            run()
            self.wait()
            rows[name] = factor * (time.perf_counter() - begin)
        found = {"seconds": rows, "seconds_of_all": sum(rows.values())}
        if "resnet56" in self.times:
            training = self.times["resnet56"]["ms_per_step"] / 1e3 * EPOCHS * EXAMPLES / self.batch
            found["share_of_the_training"] = sum(rows.values()) / training
        return found

    def kernels(self) -> dict:
        """Time the attack's kernels: each convolution of a network beside cuDNN's, and the whole attack.

        A convolution is one with residual and ReLU, in one kernel, and in cuDNN's and those of torch.
        """
        from robreg.kernels.convolution import convolve
        from robreg.kernels.residual_attack import ResidualAttack

        dtype = torch.float32 if self.tiny else torch.bfloat16
        model = make_network(self.arch, self.device, (3, 32, 32), 10).eval().requires_grad_(False)
        x, y, noise = self.draw()
        if self.tiny:
            x, noise = (one[:, :, :8, :8].contiguous() for one in (x, noise))
        tune = self.device.type == "cuda"
        attack = ResidualAttack(model, x, eps=EPS, step=STEP, steps=1 if self.tiny else STEPS, dtype=dtype, tune=tune)
        attack.refresh()
        rows = {}
        for block, before, after in zip(attack.network.blocks, attack.after, attack.after[1:], strict=False):
            name = f"{before[3]} to {after[3]} channels at {before[1]}"
            if name in rows:
                continue
            first = block.layers[0]
            weight = first.conv.weight.detach().to(dtype).to(memory_format=torch.channels_last)
            shapes = (before, after, before)
            source, target, gradient = (torch.randn(shape, device=x.device).to(dtype) for shape in shapes)
            given, shortcut = source.permute(0, 3, 1, 2), torch.randn_like(target)
            ours, options = attack.weights[id(first.conv)], {"stride": first.stride, "tune": tune}
            times = {
                "ours": partial(convolve, source, ours.forward, target, residual=shortcut, relu=True, **options),
                "cudnn": partial(plain_layer, given, weight, shortcut.permute(0, 3, 1, 2), first.stride),
                "ours, gradient": partial(convolve, target, ours.backward, gradient, transposed=True, **options),
            }
            rows[name] = {f"{key}, us": 1e6 * self.replayed(run) for key, run in times.items()}
        return {"layers": rows, "attack_ms": 1e3 * self.replayed(lambda: attack(x, y, noise))}

    def replayed(self, run: Callable[[], object]) -> float:
        """Return the seconds of a call without the time to launch it: replayed from a CUDA graph, on a GPU."""
        if self.device.type != "cuda":
            return self.seconds(run)
        for _ in range(3):
            run()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return self.seconds(graph.replay)

    def together(self) -> dict:
        """Return the images per second of one, two and four processes that train on the device at the same time."""
        rows = {}
        for count in (1, 2) if self.tiny else (1, 2, 4):
            command = [sys.executable, __file__, "--alone", "--device", self.device.type, *["--tiny"] * self.tiny]
            processes = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(count)
            ]
            for process in processes:
                assert process.stdout.readline() == "ready\n"
            for process in processes:
                process.stdin.write("go\n")
                process.stdin.flush()
            rows[count] = sum(float(process.communicate()[0]) for process in processes)
        return rows

    def alone(self) -> None:
        """Run as one of several processes: compile, wait for the others, train for a while, print images per second."""
        step = self.make(self.arch, "bf16", compiled=True)
        step(*self.draw())
        self.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < (0.2 if self.tiny else 10):
            for _ in range(self.batches):
                step(*self.draw())
            self.wait()  # rarely, as in training
            done += self.batch * self.batches
        print(done / (time.perf_counter() - begin), flush=True)


PARTS = ("kernels", "training", "others", "measures", "paper", "projection")
LONG = ("profile", "together")  # only if they are named


def main() -> None:
    """Measure the named parts, or PARTS; print each result, and update the JSON file after each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"default: {', '.join(PARTS)}; also possible: {', '.join(LONG)}")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test the code and not to measure")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/bench_gpu.json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench-gpu needs a GPU, and torch sees none here: run it on a machine that has one")
    torch.backends.cudnn.allow_tf32 = False  # as in every job
    bench = Bench(torch.device(arguments.device), tiny=arguments.tiny)
    if arguments.alone:
        bench.alone()
        return
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    found = {"device": name, "torch": torch.__version__, "tiny": arguments.tiny}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts or PARTS:
        found[part] = getattr(bench, part)()
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps({part: found[part]}, indent=2), flush=True)


if __name__ == "__main__":
    main()
