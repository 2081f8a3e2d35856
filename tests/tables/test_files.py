"""Files are written completely or not at all, never through a link, and what killed processes leave is removed."""

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
from helpers.other_user import ATTACKER, GROUP, MEMBER, ROOT, act, shared_folder

from robreg.tables import files
from robreg.tables.files import atomic_write, open_regular, temporary_file, temporary_path


@pytest.fixture
def victim(tmp_path):
    """Return a file outside of the folder of the results."""
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "x.txt"


def listen(path):
    with socket.socket(socket.AF_UNIX) as own, contextlib.chdir(path.parent):  # a socket's path has 107 bytes at most
        own.bind(path.name)


NO_FILES = {
    "a link": lambda path: path.symlink_to(path.with_name("other")),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a pipe": os.mkfifo,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": listen,
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("plant", NO_FILES.values(), ids=NO_FILES)
@pytest.mark.usefixtures("alarm")
def test_what_is_no_regular_file_is_not_opened(plant, path):
    path.with_name("other").write_text("precious")
    plant(path)
    with pytest.raises(ValueError, match=rf"{path} is a link, or no file: put a copy of the file itself"):
        open_regular(path)


def test_a_device_is_not_opened():
    with pytest.raises(ValueError, match="/dev/null is a link, or no file"):
        open_regular(Path("/dev/null"))


def test_a_regular_file_is_opened_also_below_a_link(path, tmp_path):
    path.write_text("content")
    (tmp_path / "link").symlink_to(path.parent)
    with open_regular(tmp_path / "link" / path.name) as file:
        assert file.read() == b"content"
    with pytest.raises(FileNotFoundError, match="missing"):
        open_regular(path.with_name("missing"))


def names(folder):
    return sorted(found.name for found in folder.iterdir())


def write(path, text="new"):
    with atomic_write(path) as file:
        file.write(text.encode())


def die_while_writing(path):
    block = atomic_write(path)
    block.__enter__()
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_writing(path):
    """Leave behind what a process that is killed while it writes leaves; return its name."""
    before = set(names(path.parent))

    if not (child := os.fork()):
        die_while_writing(path)
    os.waitpid(child, 0)
    (left,) = set(names(path.parent)) - before
    return left


def test_atomic_write_shows_the_file_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a" / "x.txt"
    with atomic_write(path) as file:
        file.write(b"half")
        assert not path.exists()
        assert Path(file.name).parent == path.parent  # in the same file system, so that the rename is atomic
        file.seek(0)
        file.write(b"whole")

    def interrupted():
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "whole"
    assert names(path.parent) == ["x.txt"]


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(path):
    path.write_text("old")
    with pytest.raises(OSError, match=r"x\.txt cannot be written \(nothing was written to it\)"), atomic_write(path):
        pass
    assert path.read_text() == "old"
    assert names(path.parent) == ["x.txt"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(link, path, victim):
    link(victim, path)
    write(path)
    assert (path.read_text(), path.is_symlink()) == ("new", False)
    assert victim.read_text() == "precious"


def test_nobody_can_foresee_the_name_of_a_temporary_file_and_a_link_there_is_not_followed(path, victim, monkeypatch):
    assert temporary_path(path) != temporary_path(path)
    planted = temporary_path(path)
    planted.symlink_to(victim)
    monkeypatch.setattr(files, "temporary_path", lambda _: planted)
    with pytest.raises(OSError, match=r"x\.txt cannot be written \(File exists\)"):
        write(path)
    assert victim.read_text() == "precious"


def test_a_temporary_file_that_is_swapped_for_a_link_while_it_is_written_is_not_followed(path, victim):
    with atomic_write(path) as file:
        Path(file.name).unlink()
        Path(file.name).symlink_to(victim)
        file.write(b"new")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_gives(umask, mode, path):
    before = os.umask(umask)
    try:
        write(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_what_a_killed_process_left_is_removed_by_the_next_one_that_writes_the_same_file(path):
    left = [killed_while_writing(path) for _ in range(2)]
    other = killed_while_writing(path.with_name("y.txt"))
    assert len({*left, other}) == 3
    write(path)
    assert names(path.parent) == [other, "x.txt"]


def test_what_a_living_process_writes_stays(path):
    with temporary_file(path) as (mine, _):
        write(path)
        assert mine.exists()
        killed_while_writing(path)
        write(path)
        assert names(path.parent) == [mine.name, "x.txt"]


@pytest.mark.parametrize(("age", "stays"), [(files.ABANDONED - 60, True), (files.ABANDONED + 60, False)])
def test_what_another_machine_left_is_removed_after_an_hour_by_the_clock_of_the_file_server(
    age, stays, path, monkeypatch
):
    left = path.with_name(killed_while_writing(path))
    remote = left.rename(path.with_name(left.name.replace(f".{files._machine()}-", ".00000000-")))
    lstat = Path.lstat

    def later(self):
        """Let what is written now be written `age` seconds later."""
        found = list(lstat(self))
        return os.stat_result([*found[:9], found[9] + int(age)])

    monkeypatch.setattr(Path, "lstat", later)
    write(path)
    assert remote.exists() is stays


@ROOT
def test_a_link_that_another_user_planted_in_a_folder_like_tmp_is_not_followed():
    with shared_folder(0o1777) as folder:
        path, victim = folder / "x.txt", folder / "victim"
        act(MEMBER, lambda: victim.write_text("precious"))
        act(ATTACKER, lambda: path.symlink_to(victim))

        def refused():
            with pytest.raises(OSError, match=r"x\.txt cannot be written \(Operation not permitted\)"):
                write(path)

        assert act(MEMBER, refused) == 0  # only its owner may remove the link
        assert names(folder) == ["victim", "x.txt"]
        write(path)  # root may
        assert (path.read_text(), path.is_symlink()) == ("new", False)
        assert victim.read_text() == "precious"


@ROOT
def test_members_of_a_group_replace_and_read_each_other_s_files():
    with shared_folder(0o2775) as folder:
        path, victim = folder / "x.txt", folder / "victim"
        victim.write_text("precious")
        act(ATTACKER, lambda: path.symlink_to(victim))
        for user, text in ((MEMBER, "one"), (ATTACKER, "two")):
            assert act(user, lambda text=text: write(path, text), umask=0o002) == 0
            info = path.lstat()
            assert (path.read_text(), info.st_uid, info.st_gid, info.st_mode & 0o777) == (text, user, GROUP, 0o664)
        assert victim.read_text() == "precious"


@ROOT
def test_what_another_user_is_writing_stays_and_what_he_left_is_removed():
    with shared_folder(0o2775) as folder:
        path = folder / "x.txt"
        act(ATTACKER, lambda: die_while_writing(path))
        assert len(names(folder)) == 1
        with temporary_file(path) as (mine, _):  # of root
            assert act(MEMBER, lambda: write(path)) == 0
            assert names(folder) == [mine.name, "x.txt"]


@ROOT
def test_what_cannot_be_removed_does_not_stop_a_write():
    with shared_folder(0o1777) as folder:
        act(ATTACKER, lambda: die_while_writing(folder / "x.txt"))
        (left,) = names(folder)
        assert act(MEMBER, lambda: write(folder / "x.txt")) == 0
        assert names(folder) == [left, "x.txt"]
