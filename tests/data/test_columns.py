"""Folders of Parquet files: which columns are taken, what is said of them, and labels that cannot be right."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_sources import (
    RNG,
    cifar_members,
    declare_official,
    encode,
    prepare_and_load_with,
    refusal_message_with,
    write_archive,
)

from robreg.data.dataset import hash_meta, load_dataset
from robreg.workflow.job import logged

SETTINGS = {"name": "mine", "kind": "parquet", "source": "set", "max_train": None, "max_test": None, "subset_seed": 0}
IMAGES = [encode(image) for image in RNG.integers(0, 256, (40, 4, 4, 3), np.uint8)]
CLASSES = np.arange(40) % 3
ANIMALS = np.array(["cat", "cow", "dog"])[CLASSES]


def frame(n: int = 40, **columns: Any) -> pd.DataFrame:
    """Make a table of n images in Hugging Face's layout, and other columns."""
    return pd.DataFrame({"image": [{"bytes": image, "path": None} for image in IMAGES[:n]], **columns})


def write_split(folder: Path, table: pd.DataFrame, n_train: int = 30) -> None:
    """Shuffle a table's rows and write the first as training and the others as test images, as a user would."""
    (folder / "set").mkdir(parents=True, exist_ok=True)
    shuffled = table.iloc[np.random.default_rng(3).permutation(len(table))]
    shuffled[:n_train].to_parquet(folder / "set/train.parquet")
    shuffled[n_train:].to_parquet(folder / "set/test.parquet")


def forget_pandas(folder: Path) -> None:
    """Remove pandas' metadata from the files, as other programs do that write them again."""
    for path in (folder / "set").glob("*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


prepare_and_load = partial(prepare_and_load_with, SETTINGS)
refusal_message = partial(refusal_message_with, SETTINGS)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings that were logged."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# Columns


@pytest.mark.parametrize("kept", [True, False], ids=["with metadata", "without metadata"])
def test_the_index_of_a_shuffled_table_is_no_label(tmp_path: Path, *, kept: bool) -> None:
    write_split(tmp_path, frame(species=CLASSES))
    if not kept:
        forget_pandas(tmp_path)
    assert "__index_level_0__" in pq.read_schema(tmp_path / "set/train.parquet").names
    data = prepare_and_load(tmp_path)
    assert data.classes == 3
    assert sorted([*data.train_labels.tolist(), *data.test_labels.tolist()]) == sorted(CLASSES)


def class_names(folder: Path) -> list[str]:
    """Return the names of the classes of the data that were prepared in folder."""
    return json.loads((folder / "prepared/meta.json").read_text())["class_names"]


@pytest.mark.parametrize("kind", ["object", "category", "large"])
def test_labels_that_are_text_are_numbered_in_the_order_of_the_names(tmp_path: Path, kind: str) -> None:
    names = np.array(["Zebra", "cat", "\u00e9\u0000\x1b[1m"])  # in the order of Python's text
    for folder, other in (("a", {}), ("b", {"width": CLASSES})):
        table = frame(label=names[CLASSES], **other)
        write_split(tmp_path / folder, table.astype({"label": "category"}) if kind == "category" else table)
        for path in (tmp_path / folder / "set").glob("*.parquet") if kind == "large" else ():
            content = pq.read_table(path)
            column = content.schema.get_field_index("label")
            labels = content["label"].cast(pa.large_string())
            pq.write_table(content.set_column(column, "label", labels), path, row_group_size=7, use_dictionary=False)
        data = prepare_and_load(tmp_path / folder)
        assert class_names(tmp_path / folder) == ["Zebra", "cat", "\u00e9\\x00\\x1b[1m"]
        shuffled = CLASSES[np.random.default_rng(3).permutation(40)]
        assert [*data.train_labels.tolist(), *data.test_labels.tolist()] == shuffled.tolist()


def test_text_is_taken_for_labels_only_where_a_name_says_so(tmp_path: Path) -> None:
    write_split(tmp_path, frame(species=ANIMALS))
    message = refusal_message(tmp_path)
    assert message.startswith(f"{tmp_path / 'set/train.parquet'}: cannot tell which column has the labels")
    assert "species (" in message
    assert "__index_level_0__ (int64, an index of pandas)" in message
    assert "name a column of whole numbers or of text in datasets.mine.label_column" in message
    prepare_and_load(tmp_path, label_column="species")
    assert class_names(tmp_path) == ["cat", "cow", "dog"]
    write_split(tmp_path, frame(label=CLASSES / 2))
    assert "because label has neither whole numbers nor text" in refusal_message(tmp_path)


@pytest.mark.parametrize("label", [None, "", "a" * 101])
def test_labels_that_name_no_class_are_refused_by_row(tmp_path: Path, label: str | None) -> None:
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        frame(label=ANIMALS).to_parquet(tmp_path / f"set/{split}.parquet", row_group_size=7)
    frame(label=[*ANIMALS[:30], label, *ANIMALS[31:]]).to_parquet(tmp_path / "set/test.parquet", row_group_size=7)
    message = refusal_message(tmp_path)
    assert message == (
        f"{tmp_path / 'set/test.parquet'}: no text of 1 to 100 letters in row 30 of the column label; give every image "
        "the name of its class, or name another column in datasets.mine.label_column"
    )


def test_a_text_of_any_length_in_every_row_fills_no_memory(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000), ["x" * 2**16])
    table = pa.table({"image": pa.array([{"bytes": IMAGES[0]}] * 20_000), "label": labels})
    for split in ("train", "test"):  # without the schema of Arrow, which would have it read as a dictionary
        pq.write_table(table, tmp_path / f"set/{split}.parquet", store_schema=False)
    assert (tmp_path / "set/train.parquet").stat().st_size < 2**18  # and 1.3 GB of text
    assert "no text of 1 to 100 letters in row 0" in refusal_message(tmp_path)
    assert pa.default_memory_pool().max_memory() < 2**29


def test_more_names_than_a_data_set_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path, frame(label=ANIMALS))
    monkeypatch.setattr("robreg.data.parquet_folder.MAX_NAMES", 2)
    assert "the column label has more than 2 different texts" in refusal_message(tmp_path)


def test_a_name_that_only_test_images_have_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    frame(label=ANIMALS).to_parquet(tmp_path / "set/train.parquet")
    frame(label=["bird", "ant\n", *ANIMALS[2:]]).to_parquet(tmp_path / "set/test.parquet")
    assert refusal_message(tmp_path) == (
        "datasets.mine.source: test images have class 'ant\\n', 'bird', but no training image has it; add training "
        "images of every class, or leave these test images out"
    )


def test_names_in_one_file_and_numbers_in_another_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path, frame(label=ANIMALS))
    frame(label=CLASSES).to_parquet(tmp_path / "set/test.parquet")
    message = refusal_message(tmp_path)
    assert message.startswith(f"{tmp_path / 'set/test.parquet'}: the column label has text here or in ")


def test_labels_that_begin_at_1_are_refused_unless_an_offset_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_split(tmp_path, frame(label=CLASSES + 1))
    assert refusal_message(tmp_path).startswith(
        "datasets.mine.source: the labels begin at 1 and not at 0; give datasets.mine.label_offset: 1, or "
        "datasets.mine.label_offset: 0 if class 0 should stay without an image; if the column label"
    )
    data = prepare_and_load(tmp_path, label_offset=1)
    assert (data.classes, warnings_of(caplog)) == (3, [])
    assert json.loads((tmp_path / "prepared/meta.json").read_text())["label_offset"] == 1
    shuffled = CLASSES[np.random.default_rng(3).permutation(40)]
    assert [*data.train_labels.tolist(), *data.test_labels.tolist()] == shuffled.tolist()
    assert "label 1 in row" in (message := refusal_message(tmp_path, label_offset=2))
    assert message.endswith("labels must be whole numbers from 2, because datasets.mine.label_offset is 2")
    assert prepare_and_load(tmp_path, label_offset=0).classes == 4
    assert "no image has class 0; number the classes" in warnings_of(caplog)[0]
    write_split(tmp_path, frame(label=ANIMALS))
    assert refusal_message(tmp_path, label_offset=1) == (
        "datasets.mine.label_offset: the labels in the column label are text and have no offset; remove this key"
    )


def test_names_of_classes_follow_the_offset_and_those_without_images_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_split(tmp_path, frame(label=CLASSES + 1))
    features = {"info": {"features": {"label": {"names": ["none", "cat", "cow", "dog"], "_type": "ClassLabel"}}}}
    path = tmp_path / "set/train.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    assert prepare_and_load(tmp_path).classes == 4  # the names say that the numbers are meant
    assert "no image has class 0 (none); number the classes" in warnings_of(caplog)[0]
    prepare_and_load(tmp_path, label_offset=1)
    assert class_names(tmp_path) == ["cat", "cow", "dog"]


def test_a_named_index_is_taken_only_where_the_configuration_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_split(tmp_path, frame(species=ANIMALS, kind=CLASSES).set_index("kind"))
    assert "kind (int64, an index of pandas)" in refusal_message(tmp_path)
    caplog.set_level(logging.INFO)
    assert prepare_and_load(tmp_path, label_column="kind").classes == 3
    assert "the labels come from the column kind, because datasets.mine.label_column names it" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"label_column": "lable"},
            "datasets.mine.label_column: unknown column 'lable': did you mean 'label'? known: ",
        ),
        (
            {"image_column": "imgae"},
            "datasets.mine.image_column: unknown column 'imgae': did you mean 'image'? known: ",
        ),
        ({"label_column": ""}, "datasets.mine.label_column: unknown column '': known: "),
        ({"image_column": "label"}, "expected one column of images"),
    ],
    ids=str,
)
def test_a_wrong_name_of_a_column_is_refused_with_the_right_one(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    write_split(tmp_path, frame(label=CLASSES).reset_index(drop=True))
    found = refusal_message(tmp_path, **settings)
    assert found.startswith(f"{tmp_path / 'set/train.parquet'}: {message}")
    assert "image" in found
    assert "label" in found


def test_one_of_two_columns_of_images_is_taken_where_it_is_named(tmp_path: Path) -> None:
    table = frame(label=CLASSES)
    other = [encode(image) for image in RNG.integers(0, 256, (40, 2, 2, 3), np.uint8)]
    table["small"] = [{"bytes": image, "path": None} for image in other]
    write_split(tmp_path, table)
    message = refusal_message(tmp_path)
    assert "expected one column of images" in message
    assert "name the right one in datasets.mine.image_column" in message
    assert prepare_and_load(tmp_path, image_column="small").shape == (3, 2, 2)
    assert prepare_and_load(tmp_path, image_column="image").shape == (3, 4, 4)
    meta = json.loads((tmp_path / "prepared/meta.json").read_text())
    assert meta["columns"] == {"images": "image", "labels": "label"}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_images_may_be_plain_binary_values(tmp_path: Path, kind: pa.DataType) -> None:
    write_split(tmp_path / "structs", frame(label=CLASSES))
    write_split(tmp_path / "plain", frame(label=CLASSES).assign(image=IMAGES, other=[b"x"] * 40))
    for split in ("train", "test"):
        path = tmp_path / f"plain/set/{split}.parquet"
        table = pq.read_table(path)
        position = table.schema.get_field_index("image")
        pq.write_table(table.set_column(position, "image", table["image"].cast(kind)), path, row_group_size=7)
    assert "name the right one in datasets.mine.image_column" in refusal_message(tmp_path / "plain")
    plain = prepare_and_load(tmp_path / "plain", image_column="image")
    assert plain.sha256 == prepare_and_load(tmp_path / "structs").sha256
    assert "row 0 cannot be decoded" in refusal_message(tmp_path / "plain", image_column="other")


def test_structs_are_images_even_beside_a_column_of_binary_values(tmp_path: Path) -> None:
    write_split(tmp_path, frame(label=CLASSES, checksum=[b"x"] * 40))
    assert prepare_and_load(tmp_path).shape == (3, 4, 4)


def test_images_that_are_files_elsewhere_are_refused_with_the_fix(tmp_path: Path) -> None:
    write_split(tmp_path, frame(label=CLASSES).assign(image=[f"{i}.png" for i in range(40)]))
    message = refusal_message(tmp_path)
    assert "expected one column of images" in message
    assert message.endswith("; write the content of image files into one")


def test_files_with_other_columns_than_the_first_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path, frame(label=CLASSES))
    path = tmp_path / "set/test.parquet"
    pq.write_table(pq.read_table(path).rename_columns({"label": "fine_label"}), path)
    message = refusal_message(tmp_path)
    assert message.startswith(f"{path}: expected one column of images, image.bytes, and one of labels, label, as in ")
    assert "but found image.bytes and fine_label" in message


def test_damaged_metadata_of_pandas_are_refused_by_name(tmp_path: Path) -> None:
    write_split(tmp_path, frame(label=CLASSES))
    path = tmp_path / "set/test.parquet"
    for content in ("{", "[]", '{"index_columns": 7}'):
        pq.write_table(pq.read_table(path).replace_schema_metadata({"pandas": content}), path)
        assert refusal_message(tmp_path).startswith(f"{path}: not a readable Parquet file")


def test_a_key_for_columns_is_of_no_use_without_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    digits = {"kind": "digits", "source": None, "label_column": "label"}
    prepare_and_load(tmp_path, **digits)
    assert warnings_of(caplog) == ["datasets.mine.label_column: only Parquet files have columns; remove this key"]


# What is said of the classes


def test_columns_and_the_images_of_each_class_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_split(tmp_path, frame(species=CLASSES))
    prepare_and_load(tmp_path)
    where = "datasets.mine.source: the"
    expected = [
        f"{where} images come from the column image, because it is the only one with encoded images",
        f"{where} labels come from the column species, because it is the only column of whole numbers, "
        "apart from pandas' index __index_level_0__",
    ]
    for split, file, n in (("training", "train", 30), ("test", "test", 10)):
        counts = np.bincount(pd.read_parquet(tmp_path / f"set/{file}.parquet")["species"])
        extremes = f"from {min(counts)} (class {counts.argmin()}) to {max(counts)} (class {counts.argmax()}) of each"
        each = f"class 0: {counts[0]}, class 1: {counts[1]}, class 2: {counts[2]}"
        expected.append(f"{where} {split} split has {n} images of 3 classes, {extremes}; {each}")
    assert [record.getMessage() for record in caplog.records][:4] == expected


def test_names_of_classes_are_logged_and_long_lists_are_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    write_archive(tmp_path / "c.tar.gz", cifar_members("cifar100"))
    declare_official(monkeypatch, "cifar100", tmp_path / "c.tar.gz")
    prepare_and_load(tmp_path, kind="cifar100", source="c.tar.gz", max_train=150)
    (said,) = (record.getMessage() for record in caplog.records if "training split" in record.getMessage())
    assert "150 images of 100 classes, from 1 (class 50) to 2 (class 0) of each; class 0 (class0): 2, class 1" in said
    assert said.endswith("class 19 (class19): 2, and 80 classes more")
    assert "the test split has 100 images of 100 classes, 1 of each" in caplog.text
    assert not warnings_of(caplog)


def test_what_is_said_of_the_data_is_also_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path, frame(label=CLASSES + 1))
    with logged(str(tmp_path / "log"), shown=True):
        prepare_and_load(tmp_path, label_offset=0)
    printed, log = capsys.readouterr().err, (tmp_path / "log").read_text()
    for text in (printed, log):
        assert "INFO" in text
        assert "the labels come from the column label, because it has the usual name of labels" in text
        assert "WARNING" in text
        assert "no image has class 0; number the classes from 0 without gaps" in text


def test_an_error_is_printed_once_and_without_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), logged(str(tmp_path / "log"), shown=True):
        prepare_and_load(tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        f"Error: datasets.mine.source: no folder or file {tmp_path / 'set'}; put it there or pass "
        f"--config data_root=<folder that holds set> (log: {tmp_path / 'log'})"
    ]
    assert "Traceback" in (tmp_path / "log").read_text()


# Labels that cannot be right


def test_row_numbers_are_refused_as_a_guess(tmp_path: Path) -> None:
    write_split(tmp_path, frame(species=ANIMALS, number=np.arange(40)).reset_index(drop=True))
    message = refusal_message(tmp_path)
    assert message.startswith(f"{tmp_path / 'set/train.parquet'}: the column number has ")
    assert "classes for 30 training images, so it hardly has the labels" in message
    assert "name the column of labels in datasets.mine.label_column, number itself if it is meant" in message


@pytest.mark.parametrize(("classes", "refused"), [(15, False), (16, True)])
def test_more_classes_than_half_the_images_are_too_many_for_a_guess(
    tmp_path: Path, classes: int, caplog: pytest.LogCaptureFixture, *, refused: bool
) -> None:
    (tmp_path / "set").mkdir()
    table = frame(30, person=np.arange(30) % classes)
    for split in ("train", "test"):
        table.to_parquet(tmp_path / f"set/{split}.parquet")
    if refused:
        assert "the column person has 16 classes for 30 training images" in refusal_message(tmp_path)
    else:
        prepare_and_load(tmp_path)
    assert not warnings_of(caplog)
    prepare_and_load(tmp_path, label_column="person")
    warned = [said for said in warnings_of(caplog) if "the column person has 16 classes" in said]
    assert len(warned) == refused
    for split in ("train", "test"):
        table.rename(columns={"person": "label"}).to_parquet(tmp_path / f"set/{split}.parquet")
    caplog.clear()
    prepare_and_load(tmp_path)  # the name vouches for it
    warned = [said for said in warnings_of(caplog) if "the column label has 16 classes" in said]
    assert len(warned) == refused
    assert all(said.endswith("name their column in datasets.mine.label_column") for said in warned)


def test_a_label_of_any_size_fills_no_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        frame(label=np.where(CLASSES == 2, 2**30, CLASSES)).to_parquet(tmp_path / f"set/{split}.parquet")
    prepare_and_load(tmp_path)
    assert any("no image has class 2, 3, 4" in said and "and 1073741802 more" in said for said in warnings_of(caplog))


def test_a_class_that_only_the_test_split_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    frame(label=2 * CLASSES).to_parquet(tmp_path / "set/train.parquet")
    frame(label=[3, 1, *[0] * 38]).to_parquet(tmp_path / "set/test.parquet")
    message = refusal_message(tmp_path)
    assert message.startswith("datasets.mine.source: test images have class 1, 3, but no training image has it")
    assert "if the column label does not have the labels, name theirs in datasets.mine.label_column" in message
    frame(label=[5, *[0] * 39]).to_parquet(tmp_path / "set/test.parquet")
    message = refusal_message(tmp_path)
    assert "label 5 in row 0 of the test split is outside 0..4; correct the labels of the source" in message
    assert message.endswith("name theirs in datasets.mine.label_column")


def test_classes_with_no_training_image_or_with_one_get_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "set").mkdir()
    frame(label=[4, *[0, 2] * 19, 0]).to_parquet(tmp_path / "set/train.parquet")
    frame(label=[0, 2] * 20).to_parquet(tmp_path / "set/test.parquet")
    prepare_and_load(tmp_path)
    column = "if the column label does not have the labels, name theirs in datasets.mine.label_column"
    assert warnings_of(caplog) == [
        f"datasets.mine.source: no image has class 1, 3; number the classes from 0 without gaps; {column}",
        f"datasets.mine.source: only one training image has class 4; add images of it; {column}",
    ]


def test_a_subset_without_images_of_a_class_gets_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare_and_load(tmp_path, kind="digits", source=None, max_train=10)
    assert not warnings_of(caplog)
    prepare_and_load(tmp_path, kind="digits", source=None, max_train=9)
    (said,) = warnings_of(caplog)
    assert said.startswith("datasets.mine.max_train: none of the 9 images has class ")
    assert said.endswith("; give a larger number, or null")


def test_data_that_were_prepared_without_a_record_of_columns_are_read(tmp_path: Path) -> None:
    write_split(tmp_path, frame(label=CLASSES))
    data = prepare_and_load(tmp_path)
    path = tmp_path / "prepared/meta.json"
    meta = json.loads(path.read_text())
    del meta["columns"]
    path.write_text(json.dumps(meta | {"meta_sha256": hash_meta(meta)}))
    assert load_dataset(tmp_path / "prepared").sha256 == data.sha256
