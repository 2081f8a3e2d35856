"""Fixtures that several tests share: one torch thread, networks with random weights, and a run on real data."""

import json
import os
import runpy
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton, whose kernels then run on a CPU
    os.environ["TRITON_INTERPRET"] = "1"

from robreg.data import dataset, preparation
from robreg.measures.margins import record
from robreg.networks import build, classifier

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
META = {
    "dataset": "digits",
    "variant": "ar8",
    "seed": 0,
    "version": "0.1.0",
    "settings_hash": "abc",
    "arch": "resnet8",
    "factory": None,
    "width": 4,
    "threads": 1,
    "shape": [1, 8, 8],
    "classes": 10,
    "settings": json.dumps({"data": {"crop": None}}),
}


class Run(NamedTuple):
    """A checkpoint and its prepared data: their paths and their contents."""

    checkpoint: Path
    folder: Path
    meta: dict[str, Any]
    model: classifier.Classifier
    data: dataset.Dataset

    @property
    def prepared(self) -> Path:
        """The path of the prepared data's description, which the rules of the measures take as input."""
        return self.folder / "meta.json"


def pytest_sessionstart() -> None:
    """Let programs that tests start react to Ctrl-C even in the background, where the shell makes them ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Use one torch thread in every fixture and test, as the last bits of results depend on the number of threads.

    This runs before fixtures of every scope, and restores the number after tests of jobs, which set it.
    """
    torch.set_num_threads(1)


@pytest.fixture
def alarm() -> Iterator[None]:
    """End a test that hangs."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the test hangs"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session", autouse=True)
def connections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Block connections to other machines, in the tests and in programs that they start.

    Returns the file that lists the attempted connections.
    """
    guard = Path(__file__).parent / "offline"
    tried = tmp_path_factory.mktemp("offline") / "connections"
    tried.touch()
    paths = [str(guard), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"CONNECTIONS": str(tried), "PYTHONPATH": os.pathsep.join(paths)}
    runpy.run_path(str(guard / "sitecustomize.py"))
    return tried


@pytest.fixture(autouse=True)
def no_connection(connections: Path) -> Iterator[None]:
    """Fail a test that attempted a connection, even if the code under test handled the error."""
    yield
    tried = connections.read_text()
    connections.write_text("")
    assert not tried


@pytest.fixture(scope="session")
def net() -> Callable[..., classifier.Classifier]:
    """Return a function that makes networks with random weights.

    With Fixup initialisation, all logits and input gradients would be 0.
    """

    def make(
        *,
        seed: int = 0,
        shape: tuple[int, int, int] = (1, 8, 8),
        width: int = 4,
        classes: int = 10,
        dtype: torch.dtype = torch.float32,
    ) -> classifier.Classifier:
        mean, std = [0.3, 0.4, 0.5][: shape[0]], [0.2, 0.25, 0.3][: shape[0]]
        model = build.build_network("resnet8nobias", width=width, shape=shape, classes=classes, mean=mean, std=std)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                fan_in = max(1, parameter[0].numel())
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
        return model.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, net: Callable[..., classifier.Classifier]) -> Run:
    """Write a checkpoint and 60 + 40 digits to disk as the workflow does."""
    root = tmp_path_factory.mktemp("run")
    settings = {"kind": "digits", "max_train": 60, "max_test": 40, "subset_seed": 0, "name": "digits"}
    preparation.prepare(settings, data_root=root, out=root / "data")
    prepared = dataset.load_dataset(root / "data")
    model = net(width=META["width"])
    model.normalise = classifier.Normalise(prepared.mean, prepared.std)
    meta = META | {"mean": list(prepared.mean), "std": list(prepared.std), "data_sha256": prepared.sha256}
    torch.save({"model": model.state_dict(), "meta": meta}, root / "checkpoint.pt")
    return Run(root / "checkpoint.pt", root / "data", meta, model, prepared)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare 200 + 50 digits for training, and return their folder."""
    folder = tmp_path_factory.mktemp("digits")
    spec = {"kind": "digits", "source": None, "max_train": 200, "max_test": 50, "subset_seed": 0}
    preparation.prepare(spec, data_root=folder, out=folder)
    return folder


@pytest.fixture(scope="session")
def prepared(source: Path) -> dataset.Dataset:
    """Load the digits for training."""
    return dataset.load_dataset(source)


@pytest.fixture
def margins_file(run, tmp_path) -> Path:
    """Write the run's margins.parquet, which attacks and loss variation need."""
    record(checkpoint=run.checkpoint, data=run.prepared, margins=tmp_path / "margins.parquet", batch=16, device="cpu")
    return tmp_path / "margins.parquet"


@pytest.fixture(scope="session")
def identity() -> Mapping[str, Any]:
    """Return the metadata that every table of the run must have."""
    return {key: META[key] for key in ("dataset", "variant", "seed", "version", "settings_hash")}


@pytest.fixture(scope="module")
def page() -> Any:
    """Open a page in a headless browser that can reach only this machine."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on PATH, and CI must open the report in a browser")
        pytest.skip("no Chromium on PATH: the report was not opened in a browser")
    from playwright.sync_api import sync_playwright  # here, because tests that need a GPU may run without it

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        flags += ["--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser.new_page()
        browser.close()
