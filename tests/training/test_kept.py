"""Finished networks are kept by what decides them, and used again instead of being trained again."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.trainings import assert_same, kill_at, make_settings, run
from torch import nn

from robreg.networks.checkpoint import load_network
from robreg.runs.source_code import callable_code
from robreg.training import kept, loop

A, B = make_settings(epochs=1, lr_drops=[]), make_settings(epochs=2)


@pytest.fixture
def count(monkeypatch):
    """The number of epochs that were trained, by the number that their run was to have."""
    trained = {}
    train_epoch = loop.train_epoch

    def counting(state, step, settings, *arguments, **others):
        epochs = settings["training"]["epochs"]
        trained[epochs] = trained.get(epochs, 0) + 1
        return train_epoch(state, step, settings, *arguments, **others)

    monkeypatch.setattr(loop, "train_epoch", counting)
    return trained


def content(folder):
    return {name: (folder / name).read_bytes() for name in kept.FILES}


def test_settings_changed_and_changed_back_train_nothing_twice(prepared, tmp_path, count):
    run(A, prepared, tmp_path)
    first = content(tmp_path)
    for _ in range(3):
        run(B, prepared, tmp_path)
        second = content(tmp_path)
        for file in (tmp_path / "kept").glob("*/*"):
            os.utime(file, (0, 0))
        run(A, prepared, tmp_path)
        assert content(tmp_path) == first
        assert (tmp_path / "checkpoint.pt").stat().st_mtime > 0  # so that its measures are repeated
    run(B, prepared, tmp_path)
    assert content(tmp_path) == second != first
    assert count == {1: 1, 2: 2}
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_is_trained_if_its_network_or_its_tables_are_there_with_the_wanted_settings(prepared, tmp_path):
    assert not kept.is_trained(tmp_path, A)
    run(A, prepared, tmp_path)
    assert kept.is_trained(tmp_path, A)
    assert not kept.is_trained(tmp_path, B)
    (tmp_path / "checkpoint.pt").unlink()
    assert not kept.is_trained(tmp_path, A)
    for name in ("checks.parquet", "metrics.parquet"):  # results may come without their network
        (tmp_path / name).touch()
        assert kept.is_trained(tmp_path, A)
        (tmp_path / name).unlink()
    (tmp_path / "metrics.parquet").touch()
    (tmp_path / "history.parquet").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "history.parquet"))):
        kept.is_trained(tmp_path, A)


@pytest.mark.parametrize("links", [True, False])
def test_a_kept_network_is_a_link_where_the_file_system_has_links(links, prepared, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
        monkeypatch.setattr("robreg.training.lease.os.link", shutil.copyfile)
    run(A, prepared, tmp_path)
    (folder,) = (tmp_path / "kept").iterdir()
    assert content(folder) == content(tmp_path)
    assert (tmp_path / "checkpoint.pt").samefile(folder / "checkpoint.pt") is links


def test_other_data_or_other_code_train_again(prepared, tmp_path, count, monkeypatch):
    run(A, prepared, tmp_path)
    other = kept.kept_folder(tmp_path, A, "0" * 64)
    assert other != kept.kept_folder(tmp_path, A, prepared.sha256)
    for module in (kept, loop):
        monkeypatch.setattr(module, "code_hash", lambda *_: "edited")
    run(A, prepared, tmp_path)
    assert count == {1: 2}
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_damaged_kept_network_is_set_aside_and_trained_again(prepared, tmp_path, count, caplog):
    run(A, prepared, tmp_path)
    (folder,) = (tmp_path / "kept").iterdir()
    whole = content(tmp_path)
    for name in kept.FILES:
        (tmp_path / name).unlink()
    damaged = bytearray(whole["checkpoint.pt"])
    damaged[len(damaged) // 2] ^= 1
    (folder / "checkpoint.pt").write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        run(A, prepared, tmp_path)
    assert "cannot be used again" in caplog.text
    assert content(tmp_path)["checkpoint.pt"] == content(folder)["checkpoint.pt"] == whole["checkpoint.pt"]
    assert (folder.with_name(f"{folder.name}.1") / "checkpoint.pt").read_bytes() == damaged
    assert count == {1: 2}


def test_a_kill_while_a_kept_network_is_used_again_harms_no_kept_network(source, prepared, tmp_path):
    for settings in (A, B):
        run(settings, prepared, tmp_path)
    before = {folder.name: content(folder) for folder in (tmp_path / "kept").iterdir()}
    for event, times in (("inside write", 1), ("inside write", 2), ("after write", 1), ("after write", 2)):
        for name in kept.FILES:
            (tmp_path / name).unlink(missing_ok=True)
        assert kill_at(event, times, A, source, tmp_path) == -signal.SIGKILL
        other = make_settings(epochs=1, lr_drops=[], lr=0.01 * times)
        run(other, prepared, tmp_path)
    kept_now = {name: content(tmp_path / "kept" / name) for name in before}
    assert kept_now == before
    run(A, prepared, tmp_path)
    assert content(tmp_path) == before[kept.kept_folder(tmp_path, A, prepared.sha256).name]


def swap_checkpoint(folder, prepared, tmp_path):
    other = tmp_path / "other"
    run(make_settings(epochs=1, lr_drops=[], lr=0.05), prepared, other)
    shutil.copy(other / "checkpoint.pt", folder / "checkpoint.pt")


def lose_history(folder, prepared, tmp_path):
    (folder / "history.parquet").unlink()


def damage_history(folder, prepared, tmp_path):
    content = (folder / "history.parquet").read_bytes()
    (folder / "history.parquet").unlink()
    (folder / "history.parquet").write_bytes(content[:-40])


def swap_history(folder, prepared, tmp_path):
    other = tmp_path / "other"
    run(make_settings("ar8-s1", epochs=1, lr_drops=[]), prepared, other)
    (folder / "history.parquet").unlink()
    shutil.copy(other / "history.parquet", folder / "history.parquet")


@pytest.mark.parametrize("spoil", [swap_checkpoint, lose_history, damage_history, swap_history])
def test_a_kept_network_that_is_not_what_its_key_says_is_not_used(spoil, prepared, tmp_path, count, caplog):
    run(A, prepared, tmp_path / "run")
    whole = content(tmp_path / "run")
    (folder,) = (tmp_path / "run/kept").iterdir()
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    for name in kept.FILES:
        (tmp_path / "run" / name).unlink()
    spoil(folder, prepared, tmp_path)
    with caplog.at_level(logging.WARNING):
        run(A, prepared, tmp_path / "run")
    assert "cannot be used again" in caplog.text
    assert content(tmp_path / "run")["checkpoint.pt"] == whole["checkpoint.pt"]


def test_an_interrupted_training_of_other_settings_loses_nothing(source, prepared, tmp_path, count):
    run(A, prepared, tmp_path)
    first = content(tmp_path)
    for name in kept.FILES:  # as Snakemake does before the job
        (tmp_path / name).unlink()
    assert kill_at("batch", 6, B, source, tmp_path) == -signal.SIGKILL
    run(A, prepared, tmp_path)
    assert content(tmp_path) == first
    assert (tmp_path / "resume.pt").exists()
    run(B, prepared, tmp_path)
    assert count == {1: 1, 2: 1}  # the killed process had trained the other epoch
    undisturbed = tmp_path / "undisturbed"
    assert_same(run(B, prepared, undisturbed), run(B, prepared, tmp_path))


def test_a_state_of_the_same_settings_is_deleted_when_its_network_is_used_again(source, prepared, tmp_path):
    kill_at("after write", 5, A, source, tmp_path)  # the history is written, the state not yet removed
    assert (tmp_path / "resume.pt").exists()
    run(A, prepared, tmp_path)
    assert not (tmp_path / "resume.pt").exists()


def test_a_network_from_before_is_kept_before_another_one_replaces_it(prepared, tmp_path):
    run(A, prepared, tmp_path)
    shutil.rmtree(tmp_path / "kept")
    kept.keep(tmp_path)
    (folder,) = (tmp_path / "kept").iterdir()
    assert folder == kept.kept_folder(tmp_path, A, prepared.sha256)
    assert content(folder) == content(tmp_path)
    kept.keep(tmp_path)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [folder.name]


def test_another_network_of_the_same_settings_is_kept_too(prepared, tmp_path):
    run(A, prepared, tmp_path)
    (folder,) = (tmp_path / "kept").iterdir()
    first = content(folder)
    shutil.copy(tmp_path / "checkpoint.pt", tmp_path / "copy.pt")
    with (tmp_path / "copy.pt").open("ab") as file:
        file.write(b"from another machine")
    (tmp_path / "copy.pt").replace(tmp_path / "checkpoint.pt")
    kept.keep(tmp_path)
    assert content(folder) == content(tmp_path)
    assert content(folder.with_name(f"{folder.name}.1")) == first


def test_a_run_with_a_damaged_history_is_kept_too(prepared, tmp_path, caplog):
    run(A, prepared, tmp_path)
    shutil.rmtree(tmp_path / "kept")
    (tmp_path / "history.parquet").write_bytes(b"damaged")
    kept.keep(tmp_path)
    assert "its history cannot be read" in caplog.text
    assert content(tmp_path / "kept/unreadable") == content(tmp_path)


# The command


def command(folder, *arguments, code=0):
    process = [sys.executable, "-m", "robreg.training.kept", *arguments]
    done = subprocess.run(process, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_command_lists_and_deletes_what_no_run_uses(prepared, tmp_path):
    folder = tmp_path / "results/digits/ar8"
    for settings in (A, B):
        run(settings, prepared, folder)
    keys = {name: kept.kept_folder(folder, one, prepared.sha256).name for name, one in (("A", A), ("B", B))}
    listed = command(tmp_path)
    size = f"{sum(len(one) for one in content(folder / 'kept' / keys['A']).values()) / 1e6:.1f} MB"
    assert f"results/digits/ar8/kept/{keys['B']}  {size}  in use\n" in listed
    difference = "(in the run, training.epochs is 2, not 1; in the run, training.lr_drops is [2], not [])"
    assert f"results/digits/ar8/kept/{keys['A']}  {size}  not in use {difference}\n" in listed
    assert f"2 networks; those that no run uses take {size}." in listed
    assert "--delete needs the folders" in command(tmp_path, "--delete", code=2)
    assert "there is no such folder: results/c10" in command(tmp_path, "--delete", "results/c10", code=2)
    assert len(list((folder / "kept").iterdir())) == 2
    assert f"{keys['A']}  {size}  deleted" in command(tmp_path, "--delete", "results/digits/ar8")
    assert [path.name for path in (folder / "kept").iterdir()] == [keys["B"]]
    assert load_network(folder / "checkpoint.pt")


def plant(folder, **meta):
    """Write files of a run that are no network, as whoever sends a results folder can; return the folder."""
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_text(f"no network: {folder}")
    table = pa.table({"epoch": [1]}).replace_schema_metadata({"robreg": json.dumps(meta)})
    pq.write_table(table, folder / "history.parquet")
    return folder


@pytest.mark.parametrize(
    "settings", ["\x1b]0;x\x07", json.dumps({"a": "\x1b[2J"}), "[" * 90_000, "{", "[]", 7, [], "\x1b"]
)
def test_text_of_a_received_history_cannot_command_the_terminal(settings, tmp_path):
    plant(tmp_path / "results/a", settings=json.dumps({"a": "\x1b[31m", "b": 1}))
    plant(tmp_path / "results/a/kept/one", settings=settings)
    listed = command(tmp_path)
    assert "Traceback" not in listed
    assert listed.replace("\n", "").isprintable()
    assert re.search(r"^results/a/kept/one  0\.\d MB  not in use \(", listed, re.MULTILINE)


@pytest.mark.parametrize(
    "change", [{"settings_hash": []}, {"data_sha256": 3}, {"code_hash": {"a": 1}}, {"data_sha256": None}]
)
def test_a_history_whose_hashes_are_not_text_is_kept_as_unreadable(change, tmp_path):
    meta = {"settings_hash": "a", "data_sha256": "b"}
    kept.keep(plant(tmp_path / "run", **meta | change))
    assert [found.name for found in (tmp_path / "run/kept").iterdir()] == ["unreadable"]


def test_the_message_about_an_unreadable_history_has_no_control_characters(tmp_path, caplog, monkeypatch):
    def fail(_):
        raise ValueError("a column named \x1b[2J")

    monkeypatch.setattr(kept.parquet, "read_metadata", fail)
    kept.keep(plant(tmp_path / "run"))
    assert "its history cannot be read (a column named \\x1b[2J), so it is kept in" in caplog.text


def test_no_network_is_kept_through_a_link(tmp_path):
    folder = plant(tmp_path / "run", settings_hash="a", data_sha256="b")
    (tmp_path / "elsewhere").mkdir()
    (folder / "kept").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"kept/[0-9a-f]{16} cannot be written \(Not a directory\)"):
        kept.keep(folder)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_checkpoint_that_is_a_link_is_kept_as_the_file_that_it_leads_to(tmp_path):
    folder = plant(tmp_path / "run", settings_hash="a", data_sha256="b")
    (folder / "checkpoint.pt").rename(tmp_path / "large.pt")
    (folder / "checkpoint.pt").symlink_to("../large.pt")
    kept.keep(folder)
    (found,) = (folder / "kept").iterdir()
    assert not (found / "checkpoint.pt").is_symlink()
    assert (found / "checkpoint.pt").read_text() == (tmp_path / "large.pt").read_text()


def test_nothing_is_deleted_through_links(tmp_path):
    outside = plant(tmp_path / "outside/a/kept/one")
    plant(tmp_path / "results/b/kept/two")
    (tmp_path / "results/linked").symlink_to(tmp_path / "outside")
    (tmp_path / "results/b/kept/three").symlink_to(outside)
    for arguments in ([], ["--delete", "results"]):
        listed = command(tmp_path, *arguments)
        assert "1 networks; " in listed
        for link in ("results/linked", "results/b/kept/three"):
            assert f"{link}  a link, which is not followed: give the folder that it leads to\n" in listed
    assert not (tmp_path / "results/b/kept/two").exists()
    assert (outside / "checkpoint.pt").exists()
    (tmp_path / "here").symlink_to("outside")
    assert "one  0.0 MB  deleted" in command(tmp_path, "--delete", "here")
    assert not outside.exists()


# The code of user-defined architectures


class Hidden(nn.Module):
    """A network with a number that training changes and the state dict does not hold."""

    def __init__(self, num_classes):
        super().__init__()
        self.linear, self.seen = nn.Linear(64, num_classes), 0

    def forward(self, x):
        self.seen += self.training
        return self.linear(x.flatten(1)) * (1 + 0.1 * self.seen)


def own(name):
    target = f"{__name__}:{name}"
    return A | {"arch": "own", "factory": {"callable": target, "arguments": {}, "code": callable_code(target)}}


def test_a_network_with_state_outside_of_its_weights_is_refused_after_its_first_epoch(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"own: a second network with the same weights .* differ by \S+ %"):
        run(own("Hidden"), prepared, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_code_that_was_edited_while_the_job_waited_is_refused(prepared, tmp_path):
    settings = own("Hidden")
    settings["factory"]["code"] = {**settings["factory"]["code"], __name__: "before"}
    with pytest.raises(ValueError, match=f"changed after this job was planned: {__name__} was edited; start Snakemake"):
        run(settings, prepared, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_records_the_code_of_its_architecture(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(Hidden, "forward", lambda self, x: self.linear(x.flatten(1)))
    settings = own("Hidden")
    run(settings, prepared, tmp_path)
    meta = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["meta"]
    assert meta["factory"]["code"] == callable_code(f"{__name__}:Hidden")
    plain = tmp_path / "plain"
    run(A, prepared, plain)
    assert meta["code_hash"] != torch.load(plain / "checkpoint.pt", weights_only=True)["meta"]["code_hash"]


def test_a_network_is_copied_where_the_file_system_has_no_links(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    source, planted, victim = tmp_path / "source", tmp_path / "planted", tmp_path / "victim"
    source.write_text("network")
    victim.write_text("precious")
    planted.symlink_to(victim)
    kept._link(source, tmp_path / "target")
    assert (tmp_path / "target").read_text() == "network"
    with pytest.raises(FileExistsError):
        kept._link(source, planted)
    with pytest.raises(OSError, match="symbolic links"):
        kept._link(planted, tmp_path / "new")
    assert victim.read_text() == "precious"


def test_taking_up_a_link_does_not_change_what_it_points_to(tmp_path):
    (tmp_path / "kept").mkdir()
    for name in kept.FILES:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
        (tmp_path / "kept" / name).symlink_to(tmp_path / name)
    (tmp_path / "run").mkdir()
    kept.take_up(tmp_path / "kept", tmp_path / "run")
    assert [(tmp_path / name).stat().st_mtime for name in kept.FILES] == [0, 0]


def test_links_in_place_of_files_are_not_followed_when_a_network_is_kept_or_taken_up(prepared, tmp_path):
    run(A, prepared, tmp_path / "run")
    (folder,) = (tmp_path / "run" / "kept").iterdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.utime(victim, (0, 0))
    (folder.parent / f".{folder.name}").symlink_to(tmp_path)
    for name in kept.FILES:
        (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / name).symlink_to(victim)
    kept.take_up(folder, tmp_path / "run")
    assert content(folder) == content(tmp_path / "run")
    assert not any((tmp_path / "run" / name).is_symlink() for name in kept.FILES)
    shutil.rmtree(folder)
    kept.keep(tmp_path / "run")
    assert content(folder) == content(tmp_path / "run")
    assert (victim.read_text(), victim.stat().st_mtime) == ("precious", 0)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["run", "victim"]
