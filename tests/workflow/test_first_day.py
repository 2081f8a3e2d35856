"""Forty mistakes of a user's first day, each with the one sentence that it is answered with."""

import copy
import re
import shlex

import pytest
import yaml
from helpers.snakemake_copy import ROOT, copy_tree, snakemake

from robreg.runs.config import validate
from robreg.runs.settings import ConfigError
from robreg.runs.yaml_file import check_yaml_file

TEXT = (ROOT / "config.yaml").read_text()
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
OWN = {"title": "Mine", "runs": [{"dataset": "digits", "ar": [0, 8]}], "compare": [0, 8]}
OWN |= {"figures": ["fig3"], "tables": []}
UNKNOWN_DATA = "known: c10, c100, tin, c10wd, c10e40, c10jpeg, c10short, c10small, digits"
KNOWN_TRAINING = (
    "known: epochs, batch_size, lr, lr_drops, lr_factor, momentum, weight_decay, augmentation, clip_rounds, pad, "
    "precision, compile, deterministic"
)
GRAMMAR = "ar{strength}[-{architecture}][-fgsm][-clean{share}][-sn{bound}][-{space}][-eval{space}][-s{seed}]"
NETWORKS = (
    "['resnet8', 'resnet56', 'resnet110', 'resnet8nobias', 'resnet56nobias', 'resnet110nobias', 'fixup8', 'fixup56', "
    "'fixup110', 'wrn50', 'smallvgg', 'smallvit', 'smallmobilenet', 'gone', 'typo', 'mynet']"
)
MODULE = "from torch import nn\n\n\nclass MyNet(nn.Module):\n    def __init__(self, num_classes, dropout=0.0): ...\n"
ARCHITECTURES = {
    "gone": {"callable": "gone:Net"},
    "typo": {"callable": "mynet:MyNte"},
    "mynet": {"callable": "mynet:MyNet", "arguments": {"dropuot": 0.5}},
}


TARGETS = {  # what follows `snakemake -n`: the message
    "dmeo": "there is no target 'dmeo': did you mean demo?",
    "fig1": "there is no target 'fig1': did you mean results/studies/demo/figures/fig1.svg, or that of c10-small or "
    "architectures or first-light or conventions or literal or paper?",
    "report.html": "there is no target 'report.html': did you mean results/studies/demo/report.html, or that of "
    "c10-small or architectures or first-light or conventions or literal or paper?",
    "svstd.parquet": "there is no target 'svstd.parquet': did you mean results/digits/ar0/svstd.parquet, or that of "
    "another run?",
    "digits/ar8/svstd.parquet": "there is no target 'digits/ar8/svstd.parquet': did you mean "
    "results/digits/ar8/svstd.parquet?",
    "results/digits/ar12/svsdt.parquet": "there is no target 'results/digits/ar12/svsdt.parquet': did you mean "
    "results/digits/ar12/svstd.parquet?",
    "results/digitz/ar8/svstd.parquet": f"unknown data set 'digitz': did you mean 'digits'? {UNKNOWN_DATA}",
    "results/digits/ar8": "there is no target 'results/digits/ar8': it is a folder; ask for a file in it, such as "
    "results/digits/ar8/checks.parquet",
    "results/digits/ar08/svstd.parquet": "digits/ar08: 'ar08' must be written 'ar8': a run has exactly one name, "
    "without defaults, in fixed order",
    "results/digits/ar0.5/svstd.parquet": "digits/ar0.5: 'ar0.5' is not the name of a run: '0.5' is a share of the "
    "range of pixels, but strengths are in 1/255: write 128 for 128/255",
    "results/digits/ar8/255/svstd.parquet": "there is no target 'results/digits/ar8/255/svstd.parquet': did you mean "
    "results/digits/ar8/svstd.parquet?",
    "results/digits/ar8-vgg/svstd.parquet": "digits/ar8-vgg: 'ar8-vgg' names an unknown architecture 'vgg': use "
    f"one of {NETWORKS}, or define it in config.yaml; if it is to be another part of the name, write {GRAMMAR}",
    "results/digits/ar8-resnet9/metrics.parquet": "digits/ar8-resnet9: 'ar8-resnet9' names an unknown architecture "
    f"'resnet9': use one of {NETWORKS}",
    "results/studies/dmeo/report.html": "config.yaml: studies: there is no study 'dmeo'; add its block, or ask for "
    "one of: paper, literal, conventions, first-light, architectures, c10-small, demo (did you mean demo?)",
    "results/studies/demo/figures/fig99.svg": "there is no target 'results/studies/demo/figures/fig99.svg': did you "
    "mean results/studies/demo/figures/fig9.svg?",
    "results/studies/demo/figures/fig7.svg": "config.yaml: studies.demo.figures: fig7 is not listed; add it there, or "
    "ask for one of ['fig1', 'fig2', 'fig3', 'fig4', 'fig5', 'fig6', 'fig8', 'fig9', 'fig10', 'fig11', 'fig12', "
    "'spread', 'examples']",
    "tables/tabel1.csv": "there is no target 'tables/tabel1.csv': did you mean results/studies/demo/tables/table1.csv?",
    "train": "the rule train makes many files; ask for one of them, such as results/digits/ar0/checkpoint.pt",
    "--forcerun trian -- demo": "there is no target 'trian': did you mean train?",
    "hello": "there is no target 'hello': ask for a study (all, paper, literal, conventions, first-light, "
    "architectures, c10-small, demo), or for a file such as results/studies/demo/report.html",
    "demo --config devise=cpu": "config.yaml: devise: unknown key 'devise': did you mean 'device'? known: data_root, "
    "device, only_finished, architectures, pretrained, datasets, runs, studies",
    'demo --config \'runs={"digits/ar8": {"evaluation": {"eps": 0.125}}}\'': "config.yaml: "
    "runs.digits/ar8.evaluation.eps: '0.125' is a share of the range of pixels, but radii are in 1/255: write 32 for "
    "32/255",
    "results/digits/ar8-gone/checkpoint.pt": "config.yaml: architectures: callable 'gone:Net' cannot be imported (No "
    "module named 'gone'); install it, put its file beside the Snakefile, or correct the path",
    "results/digits/ar8-typo/checkpoint.pt": "config.yaml: architectures: callable 'mynet:MyNte' cannot be imported "
    "(module 'mynet' has no attribute 'MyNte'); install it, put its file beside the Snakefile, or correct the path",
    "results/digits/ar8-mynet/checkpoint.pt": "config.yaml: architectures: callable 'mynet:MyNet' cannot be called "
    "(got an unexpected keyword argument 'dropuot'); it must take num_classes and the configured arguments",
}
VALUES = (  # the path of a key, its value, the message
    (
        "datasets.digits.evaluation.eps",
        0.125,
        "0.125 is a share of the range of pixels, but radii are in 1/255: write 32 for 32/255",
    ),
    (
        "datasets.digits.evaluation.step",
        0.03,
        "0.03 is a share of the range of pixels, but steps are in 1/255: write 8 for 8/255, or a fraction of eps such "
        "as eps/4",
    ),
    (
        "datasets.digits.training_attack.step",
        "2/255",
        "'2/255' is a share of the range of pixels, but steps are in 1/255: write 2 for 2/255, or a fraction of eps "
        "such as eps/4",
    ),
    (
        "datasets.digits.loss_variation.step",
        0.25,
        "0.25 is no fraction of eps, which this step always is: write eps/4, for example",
    ),
    (
        "datasets.digits.strong_attack.eps",
        8160,
        "8160 is more than the whole range of pixels, but radii are in 1/255: write at most 255",
    ),
    (
        "studies.demo.runs.0.ar",
        "8/255",
        "'8/255' is a share of the range of pixels, but strengths are in 1/255: write 8 for 8/255",
    ),
    ("studies.demo.runs.0.ar", 8, "8 is not of type 'array'; write [8] (training strengths in 1/255)"),
    (
        "datasets.digits.training.lr",
        "1e-1",
        "'1e-1' is not of type 'number'; write 0.1, without quotes (inside --config all values are text: use a "
        "file and --configfile) (learning rate of SGD at the start)",
    ),
    (
        "datasets.digits.training.compile",
        "True",
        "'True' is not of type 'boolean'; write true, without quotes (inside --config all values are text: use a file "
        "and --configfile) (use torch.compile and, on a GPU, a CUDA graph of the whole step; false if left out)",
    ),
    (
        "datasets.digits.masking.eps",
        [8, 16],
        "give at least one radius of 128 or more, which [8, 16] has not (increasing radii of attacks in pixel space, "
        "in 1/255; one must be at least 128, where any image can be made gray)",
    ),
    ("device", "gpu", "'gpu' is not one of ['auto', 'cpu', 'cuda'] (auto uses a GPU if there is one)"),
    (
        "studies.demo.figures",
        ["figure1"],
        "unknown figure 'figure1': did you mean 'fig1'? known: fig1, fig2, fig3, fig4, fig5, fig6, fig7, fig8, fig9, "
        "fig10, fig11, fig12, spread, examples, conventions",
    ),
    (
        "studies.demo.tables",
        ["fig3"],
        "unknown table 'fig3': known: table1, table2, table3, table4, table5, table6, b2, attacks, padding, theory",
    ),
    (
        "studies.demo.runs",
        [{"dataset": "digts", "ar": [8, 32]}],
        f"unknown data set 'digts': did you mean 'digits'? {UNKNOWN_DATA}",
    ),
    (
        "studies.demo",
        OWN | {"runs": [{"dataset": "digits", "arch": ["resnet56"], "ar": [0, 8]}], "figures": ["fig6", "fig7"]},
        ".figures: the study has no run for fig6 (missing: runs with a spectral_norm), fig7 (missing: a second "
        "architecture (arch) on a data set, for it compares architectures); add such runs, or leave these out",
    ),
    (
        "studies.demo.compare",
        [4, 8],
        "[4, 8] must be two strengths, the lower one first, that occur together in one of these: digits, resnet8 "
        "[0, 8, 16, 32]",
    ),
    (
        "studies.demo",
        {key: value for key, value in OWN.items() if key != "compare"} | {"runs": [{"dataset": "digits", "ar": [8]}]},
        ".runs: a study compares two strengths, but no data set and architecture has two with attack: [pgd] and no "
        "spectral_norm; add one to ar, such as ar: [0, 8], or judge no claims, with claims: false",
    ),
    (
        "studies.demo",
        {"title": "Mine"},
        "the keys 'runs', 'figures', 'tables' are missing; add them, or copy another block's",
    ),
    (
        "runs",
        {"digits/ar8/255": {"training": {"epochs": 3}}},
        "digits/ar8/255: 'ar8/255' is not the name of a run: '8/255' is a share of the range of pixels, but strengths "
        "are in 1/255: write 8 for 8/255",
    ),
    (
        "architectures",
        {"net": {"callable": "mynet.Net"}},
        ".net.callable: 'mynet.Net' does not match what is allowed: module:callable that can be imported; it is called "
        "with num_classes and the arguments, and returns an nn.Module",
    ),
)
TEXTS = (  # text of config.yaml, what stands there instead, the message
    (
        "        epochs: 200 ",
        "        epoch: 200 ",
        f": datasets.c10.training.epoch: unknown key 'epoch': did you mean 'epochs'? {KNOWN_TRAINING}",
    ),
    (
        "      epochs: 90 ",
        "      epoch: 90 ",
        f": datasets.tin.training.epoch: unknown key 'epoch': did you mean 'epochs'? {KNOWN_TRAINING}",
    ),
    (
        "        momentum: 0.9            # D\n",
        "",
        ": datasets.c10.training: the key 'momentum' is missing; add it",
    ),
    (
        "    title: CIFAR-100\n",
        "",
        ": datasets.c100: the key 'title' is missing; add it (the name of the data set in figures and in the report)",
    ),
    (
        "data_root: data ",
        "data_root: images\ndata_root: data ",
        ": data_root is given twice, in line 3 and in line 4; remove one, or move what stands below the second into "
        "the first",
    ),
    (
        "data_root: data ",
        "data_root: @data ",
        " cannot be read as YAML: line 3, column 12: found character '@' that cannot start any token; correct it",
    ),
)


def test_there_are_at_least_forty():
    assert len(TARGETS) + len(VALUES) + len(TEXTS) >= 40


@pytest.mark.parametrize(("path", "value", "message"), VALUES)
def test_a_wrong_value_is_answered_in_one_sentence(path, value, message):
    config = yaml.safe_load(TEXT)
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    tree = config
    for key in parents:
        tree = tree[key]
    tree[last] = value
    with pytest.raises(ConfigError) as error:
        validate(config, SCHEMA)
    assert str(error.value) == f"config.yaml: {path}{message if message[0] == '.' else f': {message}'}"


def check_both(file):
    """Check the text and the values of a configuration, as the Snakefile does."""
    check_yaml_file(file)
    validate(yaml.safe_load(file.read_text()), SCHEMA)


@pytest.mark.parametrize(("text", "instead", "message"), TEXTS)
def test_a_wrong_line_is_answered_in_one_sentence(text, instead, message, tmp_path):
    assert text in TEXT
    file = tmp_path / "config.yaml"
    file.write_text(TEXT.replace(text, instead, 1))
    with pytest.raises(ConfigError) as error:
        check_both(file)
    assert str(error.value) == f"config.yaml{message}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Copy the workflow, with networks of the user's own whose names and arguments are wrong."""
    folder = copy_tree(
        tmp_path_factory.mktemp("first"), lambda config: config["architectures"].update(copy.deepcopy(ARCHITECTURES))
    )
    (folder / "mynet.py").write_text(MODULE)
    return folder


def contents(folder):
    """Return the bytes and the time of every file, except for what Snakemake keeps for itself."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("command", TARGETS)
def test_a_wrong_command_is_answered_in_one_sentence(command, folder):
    before = contents(folder)
    output = snakemake(folder, "-n", *shlex.split(command), check=False)
    assert output.splitlines()[-1] == TARGETS[command]
    said = re.sub(r"SNAKEMAKE\n=+\n(  .*\n)+", "", output)  # how and where Snakemake was started
    assert not re.search(r"Traceback|Exception|Error|File \"|rule \w+ in", said)
    assert contents(folder) == before
