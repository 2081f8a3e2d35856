"""What torch.compile keeps and executes: it lies where no other user can write, and planted files are not used."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from helpers.other_user import ATTACKER, MEMBER, ROOT, act, shared_folder
from helpers.trainings import CPU, make_settings

from robreg.training import loop
from robreg.training.compile_cache import CHOSEN, private_cache, private_folder

OWN = f"robreg-{os.geteuid()}"
COMPILE = """
import torch
from robreg.training.compile_cache import private_cache
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
with private_cache(wanted=True):
    torch.compile(model)(torch.ones(2, 4)).sum().backward()
    print(torch._inductor.codecache._HEADER_DIR)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Return a folder for temporary files that every user may write to, as /tmp."""
    for name in CHOSEN:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return folder


def names(folder):
    return sorted(found.name for found in folder.iterdir())


def refused(path, why):
    message = (
        rf"^TRITON_CACHE_DIR: torch\.compile would run files of other users in .*: {why}.*; choose a folder of your"
    )
    with pytest.raises(ValueError, match=message):
        private_folder(path, "TRITON_CACHE_DIR")


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_a_new_folder_and_those_above_it_are_private(umask, tmp_path):
    before = os.umask(umask)
    try:
        assert private_folder(tmp_path / "a" / "b", "") == tmp_path / "a" / "b"
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o700] * 2


def test_a_folder_that_others_may_read_is_private(tmp_path):
    tmp_path.chmod(0o755)
    assert private_folder(tmp_path, "") == tmp_path


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(mode, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    refused(tmp_path / "a", "others may write to it")


@pytest.mark.parametrize(("mode", "safe"), [(0o1777, True), (0o777, False), (0o775, False)])
def test_a_folder_that_others_may_replace_is_refused(mode, safe, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a").chmod(mode)
    for path in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "c" / "d"):
        if safe:
            private_folder(path, "")
        else:
            refused(path, rf"others may replace what is in {tmp_path / 'a'}")


@pytest.mark.parametrize("target", ["folder", "nothing", "file"])
def test_a_link_or_a_file_is_refused(target, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(target)
    for path in (tmp_path / "link", tmp_path / "file"):
        refused(path, "it is not a folder, or a link to one")


def test_links_above_a_folder_are_resolved_once(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert private_folder(tmp_path / "link" / "a", "") == tmp_path / "a"


def test_a_training_with_a_compiler_has_a_private_folder_for_temporary_files(temporary, monkeypatch, prepared):
    seen = []
    monkeypatch.setattr(loop, "_train", lambda *_, **__: seen.append((tempfile.gettempdir(), os.environ["TMPDIR"])))
    files = {"checkpoint": temporary / "checkpoint.pt", "history": temporary / "history.parquet"}
    for compiled in (False, True):
        loop.train(make_settings(compile=compiled), prepared, **files, device=CPU)
    own = temporary / OWN
    assert seen == [(str(temporary),) * 2, (str(own),) * 2]
    assert own.stat().st_mode & 0o777 == 0o700
    assert (tempfile.gettempdir(), os.environ["TMPDIR"]) == (str(temporary),) * 2


def test_chosen_folders_are_used_after_the_same_check(temporary, tmp_path, monkeypatch):
    for name in CHOSEN:
        monkeypatch.setenv(name, str(tmp_path / "link" / name))
    (tmp_path / "link").symlink_to(tmp_path)
    with private_cache(wanted=True):
        assert [os.environ[name] for name in CHOSEN] == [str(tmp_path / name) for name in CHOSEN]
        os.environ[CHOSEN[0]] = "changed by torch"
    assert [os.environ[name] for name in CHOSEN] == [str(tmp_path / "link" / name) for name in CHOSEN]
    for name in CHOSEN:
        (tmp_path / name).chmod(0o777)
        with pytest.raises(ValueError, match=f"^{name}: .*others may write to it"), private_cache(wanted=True):
            pass
        (tmp_path / name).chmod(0o700)


def test_the_default_that_torch_stores_is_not_taken_for_a_choice(temporary, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(temporary / "torchinductor_me"))
    with private_cache(wanted=True):
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert not (temporary / "torchinductor_me").exists()


def test_a_folder_that_is_not_safe_is_replaced_by_a_new_one_after_a_warning(temporary, caplog):
    (temporary / OWN).mkdir()
    (temporary / OWN).chmod(0o777)
    with private_cache(wanted=True):
        used = Path(tempfile.gettempdir())
        assert used.parent == temporary
        assert used.name != OWN
        (used / "a").touch()
    assert names(temporary) == [OWN]
    assert "others may write to it" in caplog.text
    assert f"instead, {used} is used, and removed in the end" in caplog.text


@pytest.mark.parametrize("chosen", ["absolute", "relative", None])
def test_the_folder_for_caches_is_used_where_a_group_shares_the_temporary_files(
    chosen, temporary, tmp_path, monkeypatch, caplog
):
    temporary.chmod(0o775)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches") if chosen == "absolute" else "caches")
    if chosen is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    caches = tmp_path / ("caches" if chosen == "absolute" else "home/.cache")
    for _ in range(2):
        with private_cache(wanted=True):
            used = Path(tempfile.gettempdir())
            assert used == caches / "robreg" / socket.gethostname()
            assert used.stat().st_mode & 0o777 == 0o700
            (used / "a").touch()
    assert (used / "a").exists()
    assert names(temporary) == [OWN]
    assert f"others may replace what is in {temporary}" in caplog.text
    assert f"instead, {used} is used" in caplog.text


def test_a_temporary_folder_in_which_nothing_is_safe_is_refused(temporary, tmp_path):
    temporary.chmod(0o777)
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches").chmod(0o777)
    with pytest.raises(ValueError, match=r"^TMPDIR: .*others may replace what is in"), private_cache(wanted=True):
        pass
    assert names(temporary) == [OWN]


@ROOT
def test_a_folder_below_that_of_another_user_is_refused():
    with shared_folder(0o755) as folder:
        (folder / "a").mkdir()
        for owner, user, safe in (
            (ATTACKER, 0, False),
            (MEMBER, MEMBER, True),
            (0, 0, True),
            (ATTACKER, MEMBER, False),
        ):
            os.chown(folder / "a", user, user)
            os.chown(folder, owner, owner)
            why = rf"others may replace what is in {folder}"
            assert (
                act(user, partial(*((private_folder, folder / "a", "") if safe else (refused, folder / "a", why)))) == 0
            )


@ROOT
def test_a_folder_that_another_user_made_is_never_used():
    with shared_folder(0o1777) as folder:
        act(ATTACKER, (folder / OWN).mkdir)
        act(ATTACKER, (folder / f"robreg-{MEMBER}").mkdir)
        refused(folder / OWN, "it belongs to another user")

        def use():
            os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
            with private_cache(wanted=True):
                info = Path(tempfile.gettempdir()).stat()
                assert (info.st_uid, info.st_mode & 0o777) == (os.geteuid(), 0o700)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / OWN)
            with pytest.raises(ValueError, match=r"TORCHINDUCTOR_CACHE_DIR: .* belongs to another user"):
                private_cache(wanted=True).__enter__()

        for user in (0, MEMBER):
            assert act(user, use) == 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_torch_keeps_no_file_in_the_folder_whose_name_everybody_knows(temporary, monkeypatch):
    known = f"torchinductor_{getpass.getuser()}"
    monkeypatch.setenv("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")  # they take half a minute
    done = subprocess.run([sys.executable, "-c", COMPILE], check=True, timeout=300, capture_output=True, text=True)
    assert done.stdout.strip() == str(temporary / OWN / known / "precompiled_headers")
    assert names(temporary) == [OWN]
    kept = {found.relative_to(temporary / OWN).parts[1] for found in (temporary / OWN).rglob("*") if found.is_file()}
    assert {"fxgraph", "aotautograd"} <= kept
