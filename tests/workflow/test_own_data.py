"""Runs on other data and networks than the demo's: real images, and a data set and networks of the user's own."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_sources import forge_meta
from helpers.snakemake_copy import ROOT, SNAKEMAKE, copy_tree, planned, snakemake
from PIL import Image
from test_workflow import COLUMNS, reduce

from robreg.tables import parquet

SHARED = Path(__file__).parents[3] / "shared/data"
C10_JPEG = SHARED / "c10-jpeg"
TINY = SHARED / "tiny-imagenet-200-subset.zip"


@pytest.mark.skipif(not C10_JPEG.exists(), reason="needs ../shared/data/c10-jpeg, CIFAR-10 as JPEG images")
def test_a_run_on_real_images_goes_through_all_measures(tmp_path):
    def small(config):
        config["datasets"]["c10small"] |= {"max_train": 500, "max_test": 100, "dense_spectrum": 256}
        config["runs"] = {"c10small/ar8": {"training": {"epochs": 2}}}

    folder = copy_tree(tmp_path, small)
    snakemake(
        folder,
        "-c2",
        *(f"results/c10small/ar8/{kind}.parquet" for kind in COLUMNS),
        "--config",
        f"data_root={C10_JPEG.parent}",
    )
    metrics = parquet.read(folder / "results/c10small/ar8/metrics.parquet").to_pylist()[0]
    assert 0 < metrics["test_acc"] < 100
    assert parquet.read(folder / "results/c10small/ar8/svstd.parquet").column("height").to_pylist() == [
        32,
        32,
        32,
        32,
        16,
        16,
        8,
        1,
    ]


def two_steps(width):
    """Return an edit of the config that makes Tiny-ImageNet's run at AR 4 small: 40 + 20 images, two attack steps."""

    def edit(config):
        config["datasets"]["tin"] |= {"source": TINY.name, "incomplete": True, "max_train": 40, "max_test": 20}
        config["datasets"]["tin"] |= {"width": width, "threads": 2}
        short = {"steps": 2}
        config["runs"] = {
            "tin/ar4": {
                # the compiler, and bf16 on most CPUs, take minutes
                "training": {"epochs": 1, "lr_drops": [], "batch_size": 20, "compile": False, "precision": "fp32"},
                **{
                    key: short
                    for key in (
                        "training_attack",
                        "evaluation",
                        "loss_variation",
                        "spread",
                        "strong_attack",
                        "pixel_radii",
                    )
                },
                "theory": {"n": 4, "steps": 2, "pairs": 0},
            }
        }

    return edit


@pytest.mark.skipif(not TINY.exists(), reason="needs ../shared/data/tiny-imagenet-200-subset.zip, Tiny-ImageNet images")
def test_tiny_imagenet_goes_through_all_measures(tmp_path):
    folder = copy_tree(tmp_path, two_steps(width=2))
    targets = [f"results/tin/ar4/{kind}.parquet" for kind in (*COLUMNS, "theory")]
    snakemake(folder, "-c2", *targets, "--config", f"data_root={SHARED}")
    run = folder / "results/tin/ar4"
    margins = parquet.read(run / "margins.parquet").to_pandas()
    assert margins.groupby("split").size().to_dict() == {"test": 20, "train": 40}
    svstd = parquet.read(run / "svstd.parquet").to_pandas()
    assert (len(svstd), svstd["kind"].tolist().count("conv")) == (54, 53)
    assert svstd.loc[svstd["kernel"] == 3, ["height", "stride"]].to_numpy().tolist() == (
        [[56, 1]] * 4 + [[56, 2]] + [[28, 1]] * 3 + [[28, 2]] + [[14, 1]] * 5 + [[14, 2]] + [[7, 1]] * 2
    )
    assert [row["steps"] for row in parquet.read(run / "attacks.parquet").to_pylist()] == [2] * 8


def colours(folder):
    """Write 32 x 32 images of two classes, which differ in colour, as Parquet files in the Hugging Face layout."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, n in (("train", 60), ("test", 20)):
        labels = np.arange(n) % 2
        pixels = generator.integers(0, 150, (n, 32, 32, 3), dtype=np.uint8)
        pixels[np.arange(n), :, :, labels] += 100
        rows = []
        for image in pixels:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        pq.write_table(pa.table({"image": rows, "label": labels}), folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Copy the workflow, with a user-defined data set and torchvision's networks in its config."""

    def edit(config):
        config["architectures"] |= {
            "tv18": {"callable": "torchvision.models:resnet18"},
            "alex": {"callable": "torchvision.models:alexnet", "arguments": {"dropout": 0.0}},
            "squeeze": {"callable": "torchvision.models:squeezenet1_1"},
        }
        block = {**config["datasets"]["c10small"], "title": "colours", "source": "colours", "architecture": "tv18"}
        block |= {"max_train": None, "max_test": None, "dense_spectrum": 64}
        block["theory"] = {**block["theory"], "n": 3, "steps": 5}
        block["training"] = {**block["training"], "epochs": 2, "lr_drops": [1], "lr": 0.01}
        config["datasets"] |= {"colours": block, "long": {**block, "title": "long", "source": "long"}}

    folder = copy_tree(tmp_path_factory.mktemp("own"), edit)
    colours(folder / "data/colours")
    return folder


def test_prepared_data_keep_to_the_memory_of_their_rule_and_to_the_settings_of_a_training(own):
    image = {"bytes": bytes(100 * 2**20), "path": None}
    for split in ("train", "test"):
        (own / "data/long").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [image] * 2, "label": [0, 1]}), own / f"data/long/{split}.parquet")
    long = snakemake(own, "-c1", "data/prepared/long/meta.json", "--set-resources", "prepare:mem_mb=200", check=False)
    assert "the data need more than 200 MB of memory while they are read" in long
    assert "allow more: --set-resources prepare:mem_mb=400" in long
    snakemake(own, "-c1", "data/prepared/colours/meta.json")
    forge_meta(own / "data/prepared/colours", crop=8)
    refused = snakemake(own, "-c1", "results/colours/ar8/checkpoint.pt", check=False)
    assert "meta.json: was prepared with crop: 8, but config.yaml has null; make it again" in refused
    snakemake(own, "-c1", "--force", "data/prepared/colours/meta.json")


def test_a_user_defined_data_set_and_network_only_need_config(own):
    snakemake(own, "-c2", *(f"results/colours/ar8/{kind}.parquet" for kind in (*COLUMNS, "theory")))
    run = own / "results/colours/ar8"
    svstd = parquet.read(run / "svstd.parquet").to_pandas()
    assert (len(svstd), svstd["name"].iloc[-1]) == (21, "network.fc")  # torchvision's ResNet-18
    assert parquet.read(run / "margins.parquet").num_rows == 80
    losses = parquet.read(run / "attacks.parquet").column("loss").to_pylist()
    assert losses == ["cross_entropy"] * 5 + ["worst"]  # DLR needs three classes
    theory = parquet.read(run / "theory.parquet").to_pylist()[0]
    assert theory["v_min_upper"] is None or theory["v_min_upper"] > 0
    assert theory["lemma_pairs"] == 0  # its max pooling does not have the form that the lemma needs
    assert "max_pool2d is neither affine nor a ReLU" in (own / "logs/theory/colours/ar8.log").read_text()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("ar8-squeeze-sn1", "layer network.features.0: a bound needs padding that keeps the size"),
        ("ar8-alex", "Error: the network cannot take an image of shape (3, 32, 32) (Given input size"),
    ],
)
def test_a_network_that_cannot_be_bounded_or_take_the_images_is_refused_before_any_training(run, message, own):
    output = snakemake(own, "-c1", f"results/colours/{run}/checkpoint.pt", check=False)
    assert message in output
    folder = own / f"results/colours/{run}"
    assert not folder.exists() or not any(folder.iterdir())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Copy the workflow, with photos as Parquet files and a data set in config.yaml, both as the documentation says."""
    folder = copy_tree(tmp_path_factory.mktemp("photos"))
    generator = np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 3)):
        for name in ("cat", "cow", "dog"):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"photos/{split}/{name}/{i}.png")
    guide = (ROOT / "docs/how-to/own-data.md").read_text()
    (recipe,) = (text for text in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "to_parquet" in text)
    subprocess.run([sys.executable, "-c", recipe], cwd=folder, check=True)
    (block,) = re.findall(r"`(mine: \{.*?\})`", guide)
    before, heading, after = (
        (folder / "config.yaml").read_text().partition("\n# Architectures beside the package's own")
    )
    (as_files,) = re.findall(r"^  (photos: \{.*?\})$", guide, re.MULTILINE)
    (folder / "data/photos").symlink_to(folder / "photos")
    (folder / "config.yaml").write_text(f"{before}\n  {block}\n  {as_files}\n{heading}{after}")
    return folder


def test_the_guide_s_recipe_makes_a_data_set_from_photos(photos):
    output = snakemake(photos, "-c1", "data/prepared/mine/meta.json")
    assert pq.read_table(photos / "data/mine/test.parquet")["label"].to_pylist() == [0] * 3 + [1] * 3 + [2] * 3
    assert planned(photos, "data/prepared/mine/meta.json") == {}
    log = (photos / "logs/prepare/mine.log").read_text()
    for text in (output, log):
        assert "the images come from the column image, because it is the only one with encoded images" in text
        assert "the labels come from the column label, because it has the usual name of labels" in text
        assert "the training split has 24 images of 3 classes, 8 of each" in text
        assert "the test split has 9 images of 3 classes, 3 of each" in text
    images = np.load(photos / "data/prepared/mine/test_images.npy")
    with Image.open(photos / "photos/test/dog/2.png") as image:
        assert np.array_equal(images[-1], np.asarray(image).transpose(2, 0, 1))


def test_the_guide_s_folder_of_images_gives_the_same_images(photos):
    snakemake(photos, "-c1", "data/prepared/photos/meta.json", "data/prepared/mine/meta.json")
    for name in ("test_images.npy", "test_labels.npy"):
        assert np.array_equal(*(np.load(photos / "data/prepared" / one / name) for one in ("photos", "mine")))


def test_data_are_prepared_again_for_a_column_that_the_configuration_names(photos, tmp_path):
    named = tmp_path / "named"
    shutil.copytree(photos, named)
    text = (named / "config.yaml").read_text()
    for key, given, suggested in (("label", "lable", "label"), ("image", "imgae", "image")):
        (named / "config.yaml").write_text(text.replace("source: mine}", f"source: mine, {key}_column: {given}}}"))
        output = snakemake(named, "-c1", "data/prepared/mine/meta.json", check=False)
        expected = f"datasets.mine.{key}_column: unknown column '{given}': did you mean '{suggested}'?"
        assert f"Error: data/mine/train.parquet: {expected} known: image, label" in output


UNSHARE = ["unshare", "-rn"]  # without any network, even on this machine


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], check=False).returncode != 0,
    reason="this machine lets no process leave the network",
)
def test_a_run_needs_no_network(tmp_path):
    def small(config):
        reduce(config)
        config["datasets"]["digits"]["training"] |= {"epochs": 1, "lr_drops": []}

    folder = copy_tree(tmp_path, small)
    targets = ["results/digits/ar0/metrics.parquet", "results/studies/demo/figures/fig2.svg"]
    done = subprocess.run(
        [*UNSHARE, SNAKEMAKE, "-c2", *targets], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert all((folder / target).exists() for target in targets)
