"""A private place for the files of torch.compile, which it executes without looking who wrote them."""

import logging
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

# Folders that a user may choose; otherwise, both are in the folder for temporary files.
CHOSEN = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

log = logging.getLogger(__name__)


@contextmanager
def private_cache(*, wanted: bool) -> Iterator[None]:
    """Let torch.compile keep its files where no other user can put any during the block; then undo all changes.

    By default, they are in a folder of /tmp whose name everybody knows, and some stay there whatever CHOSEN says. So
    the folder for temporary files is a private one meanwhile: the same for all trainings of a user on a machine, or, if
    another user has taken its name, a new one, which is removed in the end. Where others may replace all temporary
    files, as in a folder of a group, it is in the user's folder for caches.
    wanted: if False, nothing is changed. Raises ValueError if a folder in CHOSEN, or none of these, is private.
    """
    if not wanted:
        yield
        return
    before, temporary = {name: os.environ.get(name) for name in (*CHOSEN, "TMPDIR")}, tempfile.tempdir
    chosen = {name: str(private_folder(path, name)) for name in CHOSEN if (path := _chosen_folder(name))}
    folder, shared = _own_folder()
    try:
        tempfile.tempdir = str(folder)
        # Kernels of this package run before Inductor chooses a folder for Triton.
        own = {"TORCHINDUCTOR_CACHE_DIR": None, "TRITON_CACHE_DIR": str(folder / "triton")}
        _set_variables({**own, **chosen, "TMPDIR": str(folder)})
        yield
    finally:
        tempfile.tempdir = temporary
        _set_variables(before)
        if not shared:
            shutil.rmtree(folder, ignore_errors=True)


def _set_variables(values: Mapping[str, str | None]) -> None:
    """Set environment variables, or remove those whose value is None."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _chosen_folder(name: str) -> Path | None:
    """Return the folder that a variable names, unless it is torch's default, which torch stores there on import."""
    value = os.environ.get(name, "")
    is_default = os.path.dirname(value) == tempfile.gettempdir() and "torchinductor_" in value
    return Path(value) if value and not is_default else None


def _own_folder() -> tuple[Path, bool]:
    """Return a private folder for temporary files, and whether this user's other trainings share it."""
    path = Path(tempfile.gettempdir(), f"robreg-{os.geteuid()}")
    try:
        return private_folder(path, "torch.compile"), True
    except (OSError, ValueError) as error:
        folder = Path(tempfile.mkdtemp(prefix="robreg-"))
        try:
            private_folder(folder, "TMPDIR")
        except ValueError as unsafe:
            folder.rmdir()
            return _folder_for_caches(unsafe), True
        log.warning("%s; instead, %s is used, and removed in the end", error, folder)
        return folder, False


def _folder_for_caches(unsafe: ValueError) -> Path:
    """Return a private folder of this machine among the user's caches.

    unsafe: says why there is none among the temporary files; raised if there is none here either.
    """
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    try:
        caches = Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache"
        folder = private_folder(caches / "robreg" / socket.gethostname(), "XDG_CACHE_HOME")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: the user has no home
        log.warning("the folder for caches cannot be used instead: %s", error)
        raise unsafe from error
    log.warning("%s; instead, %s is used", unsafe, folder)
    return folder


def private_folder(path: Path, name: str) -> Path:
    """Make a folder if there is none, and return its path without links.

    Raises ValueError, which begins with name, if another user could put a file into it: if it is a link, if it belongs
    to somebody else, or if others may write to it, or own or may write to a folder above it, so that they could
    replace it.
    """
    path = path.absolute()
    for folder in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        with suppress(FileExistsError):  # another training made it just now, or it is a link to nothing
            folder.mkdir(mode=0o700)
    info = path.lstat()
    real = path.parent.resolve() / path.name
    why = ""
    if not stat.S_ISDIR(info.st_mode):
        why = "it is not a folder, or a link to one"
    elif info.st_uid != os.geteuid():
        why = "it belongs to another user"
    elif info.st_mode & _OTHERS_WRITE:
        why = "others may write to it"
    elif open_to_others := [folder for folder in real.parents if _others_may_replace(folder)]:
        why = f"others may replace what is in {open_to_others[0]}"
    if why:
        raise ValueError(
            f"{name}: torch.compile would run files of other users in {path}: {why}; choose a folder of your own that "
            "only you may write to (chmod go-w)"
        )
    return real


def _others_may_replace(folder: Path) -> bool:
    """Return whether users may rename what others have in a folder: its owner, and, without a sticky bit, who writes.

    The owner of / can replace everything anyway; in some containers, that is how root is seen.
    """
    info = folder.stat()
    if info.st_uid not in (0, os.geteuid(), Path("/").stat().st_uid):
        return True
    return bool(info.st_mode & _OTHERS_WRITE) and not info.st_mode & stat.S_ISVTX
