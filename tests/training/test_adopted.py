"""A network that is trained already gets a checkpoint with its own weights, and a history without epochs."""

import hashlib

import pytest
import torch
from helpers.trainings import make_settings
from torch import nn

from robreg.checks import run_checks
from robreg.data.dataset import to_float
from robreg.networks.checkpoint import load_network
from robreg.networks.user_defined import ArchitectureError
from robreg.report.costs import run_accounts
from robreg.runs.source_code import callable_code
from robreg.tables import parquet
from robreg.training import loop
from robreg.training.kept import is_trained, kept_networks


class Given(nn.Module):
    """A small network for digits."""

    def __init__(self, num_classes, width=8):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


def settings_of(weights, *, normalises=True, **arguments):
    target = f"{__name__}:Given"
    factory = {"callable": target, "arguments": arguments, "code": callable_code(target), "normalises": normalises}
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    return make_settings("ar0") | {
        "variant": "ar0-given",
        "arch": "given",
        "factory": factory,
        "training": {"epochs": 0},
        "train_attack": None,
        "pretrained": {"sha256": sha256},
    }


@pytest.fixture
def network():
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return Given(10).eval()


@pytest.fixture
def weights(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "given.pt")
    return tmp_path / "given.pt"


def adopt(settings, prepared, weights, folder):
    folder.mkdir(exist_ok=True)
    files = {"checkpoint": folder / "checkpoint.pt", "history": folder / "history.parquet"}
    loop.adopt(settings, prepared, weights, **files)
    return folder


@pytest.mark.parametrize("normalises", [True, False])
def test_the_checkpoint_gives_exactly_the_logits_of_the_network(normalises, network, prepared, weights, tmp_path):
    settings = settings_of(weights, normalises=normalises)
    folder = adopt(settings, prepared, weights, tmp_path / "run")
    model, meta = load_network(folder / "checkpoint.pt", architecture=settings)
    x = to_float(prepared.test_images[:20])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (prepared.mean, prepared.std))
    assert torch.equal(model(x), network(x if normalises else (x - mean) / std))
    assert torch.equal(model.normalise.std, std)  # radii in normalised space are those of the data
    assert (model.normalise.smallest_scale is None) == normalises
    assert (meta["device"], meta["probe_images"]) == ("not trained here", 8)
    assert '"pretrained": {"sha256": "' + settings["pretrained"]["sha256"] in meta["settings"]
    assert not {"precision", "step"} & meta.keys()
    again = load_network(folder / "checkpoint.pt", architecture=Given(10))[0]
    assert torch.equal(again(x), model(x))


def test_a_checkpoint_of_the_other_normalisation_is_refused(prepared, weights, tmp_path):
    folder = adopt(settings_of(weights), prepared, weights, tmp_path / "run")
    with pytest.raises(ArchitectureError, match=r"normalising its input itself, but by config\.yaml that of its run"):
        load_network(folder / "checkpoint.pt", architecture=settings_of(weights, normalises=False))


def test_its_history_has_no_epoch_and_serves_kept_networks_and_the_report(prepared, weights, tmp_path):
    settings = settings_of(weights)
    folder = adopt(settings, prepared, weights, tmp_path / "run")
    assert parquet.read_history(folder / "history.parquet") == []
    assert is_trained(folder, settings)
    assert not is_trained(folder, settings | {"pretrained": {"sha256": "0" * 64}})
    assert [(one.used, one.differences) for one in kept_networks(folder)] == [(True, "")]
    run = {"folder": str(folder), "dataset": "digits", "variant": "ar0-given"}
    account = run_accounts([run], {"digits/ar0-given": settings})[0]
    assert (account.epochs, account.epochs_s, account.device) == (0, 0.0, "not trained here")
    assert (account.verified, account.differences, account.code) == (True, "", "current code")


def test_only_a_network_that_was_not_trained_here_may_have_no_epoch(prepared, weights, tmp_path):
    folder = adopt(settings_of(weights), prepared, weights, tmp_path / "run")
    history = parquet.read(folder / "history.parquet").to_pandas()
    epochs = parquet.read(folder / "history.parquet").to_pandas().reindex([0]).assign(epoch=1)
    for frame, trained, complete in (
        (history, False, True),
        (history, True, False),
        (epochs, True, True),
        (epochs, False, False),
    ):
        assert run_checks._is_complete(frame, trained=trained) == complete


def test_weights_that_do_not_fit_leave_no_file(prepared, weights, tmp_path):
    with pytest.raises(
        ArchitectureError, match=r"given\.pt does not fit its network: it has other shapes conv\.weight"
    ):
        adopt(settings_of(weights, width=4), prepared, weights, tmp_path / "run")
    torch.save(Given(5).state_dict(), weights)
    with pytest.raises(
        ArchitectureError, match="the network returned 5 outputs per image, but the data have 10 classes"
    ):
        adopt(settings_of(weights, num_classes=5), prepared, weights, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
