"""Tests of the benchmarks: they time only equal results, in turns, and the GPU benchmark also runs on a CPU."""

import json
import os
import subprocess
import sys

import bench
import bench_gpu
import pytest
import torch
from helpers.snakemake_copy import ROOT


def test_a_comparison_takes_turns_and_returns_the_ratio_of_times(monkeypatch):
    calls, clock = [], [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def taking(name, seconds):
        def call():
            calls.append(name)
            clock[0] += seconds

        return call

    row = bench.compare("what", "peer", ours=taking("ours", 2), theirs=taking("theirs", 6), equal="", repeat=3)
    assert calls == ["theirs", "ours", "ours", "theirs"] * 2
    assert (row.ours, row.theirs, row.ratio, row.low, row.high) == (2, 6, 3, 3, 3)
    assert "| what | peer | 2 | 6 | 3.00 (3.00 to 3.00) |" in bench.table([row])


@pytest.mark.parametrize("case", [bench.bench_attack, bench.bench_training, bench.bench_evaluation])
def test_unequal_results_are_not_timed(case, monkeypatch):
    real = bench.torchattacks_pgd
    shifted = lambda *arguments: (real(*arguments) + 0.02).clamp(0, 1)  # noqa: E731
    monkeypatch.setattr(bench, "torchattacks_pgd", shifted)
    monkeypatch.setattr(bench.evaluation, "evaluate", lambda *_, **__: {"n_correct": -1, "n_robust": -1})
    monkeypatch.setattr(bench, "EPS", 9 / 255)  # only for the training loop that is compared with
    monkeypatch.setattr(bench, "compare", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(AssertionError):
        case(8)


def test_unequal_spectra_are_not_timed(monkeypatch):
    real = bench.sedghi
    monkeypatch.setattr(bench, "sedghi", lambda *arguments: real(*arguments) + 1e-9)
    monkeypatch.setattr(bench, "compare", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(AssertionError, match="e-09"):
        bench.bench_spectra(wide=False)


def test_foolbox_is_not_timed_if_its_images_differ(monkeypatch):
    real = bench.foolbox_pgd
    monkeypatch.setattr(bench, "foolbox_pgd", lambda *arguments: real(*arguments) + 2e-6)
    monkeypatch.setattr(bench, "compare", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(AssertionError, match="images"):
        bench.bench_attack(2)


@pytest.mark.parametrize("accuracies", [(50.0, 48.5), (100.0, 100.0), (0.0, 0.0)])
def test_bf16_is_not_timed_if_its_robust_accuracy_differs_or_is_0_or_100(accuracies, monkeypatch):
    found, make = iter(accuracies), bench.make_network
    monkeypatch.setattr(bench, "make_network", lambda: make(8))
    monkeypatch.setattr(bench, "compare", lambda what, *_, **__: pytest.fail("timed") if "bf16" in what else None)
    monkeypatch.setattr(bench, "_accuracy", lambda *_: next(found))
    with pytest.raises(AssertionError, match=r"robust accuracy|says nothing"):
        bench.bench_attack(2)


@pytest.mark.parametrize("wrong", [lambda images: images.flip(2), lambda images: images.roll(1, 3)])
def test_augmentation_is_not_timed_if_its_pixels_are_wrong(wrong, monkeypatch):
    monkeypatch.setattr(bench, "random_crop_flip", lambda images, **_: wrong(images))
    monkeypatch.setattr(bench, "compare", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(AssertionError, match="no crop"):
        bench.bench_data(64)


def test_the_projection_is_not_timed_if_norms_exceed_the_bound(monkeypatch):
    make = bench.make_network
    monkeypatch.setattr(bench, "make_network", lambda _, shape: make(8, shape))
    monkeypatch.setattr(bench.projection, "project", lambda *_: [1 + 1e-6])
    with pytest.raises(AssertionError, match="above the bound"):
        bench.bench_projection(1)


def test_the_gpu_benchmark_runs_with_small_sizes_on_a_cpu(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, ROOT / "tests/bench/bench_gpu.py", "training", "projection", "--device", "cpu", "--tiny"]
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}  # on a CPU, the compiler would need minutes
    subprocess.run([*command, "--out", out], check=True, capture_output=True, env=environment)
    found = json.loads(out.read_text())
    steps = ["fp32", "fp32, compiled", "bf16", "bf16, compiled", "bf16, compiled, deterministic", "peer"]
    assert list(found["training"]["steps"]) == steps
    assert found["training"]["steps"]["fp32"]["loss_differs_by"] < 1e-5
    assert found["projection"]["seconds"] > 0


def test_the_costs_of_the_paper_and_of_the_measures_are_projected(tmp_path):
    out = tmp_path / "bench.json"
    parts = ["others", "paper", "measures"]
    command = [sys.executable, ROOT / "tests/bench/bench_gpu.py", *parts, "--device", "cpu", "--tiny", "--out", out]
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    found = json.loads(out.read_text())
    assert found["others"]["wrn50"]["share_of_bf16_peak"] > 0
    runs = found["paper"]["runs"]
    assert len(runs) == 40
    assert found["paper"]["hours"] == pytest.approx(sum(row["hours"] for row in runs.values()))
    assert runs["tin/ar0"]["ms_per_step"] == found["others"]["wrn50"]["ms_training_pass"]
    assert runs["tin/ar16"]["ms_per_step"] == pytest.approx(found["others"]["wrn50"]["ms_per_step"])
    assert runs["c10/ar0"]["ms_per_step"] < runs["c10/ar4-fgsm"]["ms_per_step"] < runs["c10/ar4"]["ms_per_step"]
    assert list(found["measures"]["seconds"]) == ["attacks", "lossvar", "apgd", "masking", "spread"]
    assert min(found["measures"]["seconds"].values()) > 0


def test_the_documentation_states_what_the_paper_costs_by_the_measured_steps():
    times = {
        "resnet56": {"ms_per_step": 33.3, "ms_training_pass": 4.8},
        "resnet110": {"ms_per_step": 66.6, "ms_training_pass": 9.6},  # taken as twice as much
        "wrn50": {"ms_per_step": 359.0, "ms_training_pass": 359 * 3 / 23},  # a training pass is 3 of 23 parts
    }
    rows = bench_gpu.project_hours(bench_gpu.read_config(), times)
    groups = {}
    for name, row in rows.items():
        arch = "wrn50" if name.startswith("tin") else "resnet110" if "resnet110" in name else "resnet56"
        attack = "FGSM" if name.endswith("fgsm") else "none" if "/ar0" in name else "PGD"
        groups.setdefault((arch, attack), []).append(row)
    expected = [
        f"| `{arch}` | {attack} | {len(group)} | {group[0]['ms_per_step']:.1f} | {60 * group[0]['hours']:.0f} | "
        f"{sum(row['hours'] for row in group):.1f} |"
        for (arch, attack), group in groups.items()
    ]
    expected.append(f"| all | | {len(rows)} | | | {sum(row['hours'] for row in rows.values()):.1f} |")
    page = (ROOT / "docs/how-to/cluster.md").read_text()
    section = page[page.index("## What the paper costs") : page.index("## Test it")]
    _, _, *stated = [line for line in section.splitlines() if line.startswith("|")]
    assert sorted(stated) == sorted(expected)


def test_the_kernels_are_timed_beside_plain_layers(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, ROOT / "tests/bench/bench_gpu.py", "kernels", "--device", "cpu", "--tiny", "--out", out]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    found = json.loads(out.read_text())["kernels"]
    assert list(found["layers"]) == [
        "16 to 16 channels at 8",
        "16 to 32 channels at 8",
        "32 to 64 channels at 4",
    ]
    assert all(value > 0 for row in found["layers"].values() for value in row.values())
    assert found["attack_ms"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_benchmark_refuses_a_machine_without_a_gpu():
    done = subprocess.run(
        [sys.executable, ROOT / "tests/bench/bench_gpu.py"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bench-gpu needs a GPU, and torch sees none here: run it on a machine that has one\n"
