"""A study of a user's own: images in folders, a network that is trained already, a transformer, one without layers."""

import html

import numpy as np
import pytest
import torch
from helpers.snakemake_copy import copy_tree, planned, snakemake
from PIL import Image
from torchvision.models import resnet18

from robreg.tables import parquet

NETWORK = """import torch
from torch import nn


class Bare(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * 16 * 16, num_classes) / 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight
"""
ANIMALS = ("cat", "cow", "dog")


def own(config):
    """Configure the study `mine` of four networks on the folder `photos`."""
    digits = config["datasets"]["digits"]
    block = {**digits, "title": "photos", "kind": "imagefolder", "source": "photos", "dense_spectrum": 64}
    block["training"] = {**digits["training"], "epochs": 2, "lr_drops": [1], "batch_size": 8, "lr": 0.01}
    block["theory"] = {**digits["theory"], "n": 2, "steps": 2, "pairs": 0}
    block["masking"] = {**digits["masking"], "n": 4}
    config["datasets"]["photos"] = block
    transformer = {"callable": "robreg.networks.small_networks:vision_transformer"}
    config["architectures"] |= {
        "vit": {**transformer, "arguments": {"channels": 3, "image_size": 16, "patch_size": 4}},
        "bare": {"callable": "bare:Bare"},
    }
    config["pretrained"] = {
        "theirs": {
            "dataset": "photos",
            "callable": "torchvision.models:resnet18",
            "weights": "theirs.pth",
            "normalises": False,
        }
    }
    pairs = ["photos/vit", "photos/bare"]  # the third network has one strength
    config["studies"]["mine"] = {
        "title": "Mine",
        "runs": [
            {"dataset": "photos", "arch": ["vit", "bare"], "ar": [0, 8]},
            {"dataset": "photos", "arch": ["theirs"], "ar": [0]},
        ],
        "compare": [0, 8],
        "figures": [{"fig1": pairs}, "fig3", "fig4", {"fig5": pairs}, "fig7", "fig8", "fig12", "spread"],
        "tables": ["table1", "table3", {"b2": pairs}, "attacks", "padding", "theory"],
    }


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = copy_tree(tmp_path_factory.mktemp("mine"), own)
    (folder / "bare.py").write_text(NETWORK)
    generator = np.random.default_rng(0)
    for split, n in (("train", 11), ("test", 3)):
        for label, name in enumerate(ANIMALS):
            place = folder / "data/photos" / split / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 150, (16, 16, 3), np.uint8)
                pixels[:, :, label] += 100
                Image.fromarray(pixels).save(place / f"{i}.png")
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=3).state_dict(), folder / "data/theirs.pth")
    snakemake(folder, "-c2", "mine")
    return folder


def test_no_step_is_left_and_the_given_network_was_not_trained(mine):
    assert planned(mine, "mine") == {}
    run = mine / "results/photos/ar0-theirs"
    assert parquet.read(run / "history.parquet").num_rows == 0
    weights = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    given = torch.load(mine / "data/theirs.pth", weights_only=True)
    assert all(torch.equal(weights[f"network.{name}"], value) for name, value in given.items())


def test_the_report_names_classes_networks_and_what_has_no_singular_values(mine):
    text = html.unescape((mine / "results/studies/mine/report.html").read_text())
    for part in (
        "3 classes (cat, cow, dog)",
        "theirs, built by torchvision.models:resnet18, trained already",
        "encoder_layer_2.self_attention (MultiheadAttention weights its tokens by what the image shows",
        "These parts of bare have no singular values here: network (Bare has weight (768, 3)",
    ):
        assert part in text
    for figure, panels in (("fig1", 1), ("fig5", 1), ("spread", 2)):
        drawn = (mine / f"results/studies/mine/figures/{figure}.svg").read_text()
        assert drawn.count("no layer that is measured") == panels


def test_claims_of_every_network_are_judged_by_what_it_has(mine):
    claims = parquet.read(mine / "results/studies/mine/claims.parquet").to_pandas()
    claims = claims[(claims["dataset"] == "photos") & claims["effect"].notna()]
    spectral = set(claims.loc[claims["claim"].str.contains("singular values"), "arch"])
    assert spectral == {"vit", "theirs"}
    assert set(claims["arch"]) == {"vit", "bare", "theirs"}
