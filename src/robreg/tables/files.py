"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cannot_write(path: Path, error: OSError) -> OSError:
    """Say of a file that it could not be written, why, and the mend: an error like the one that was met."""
    why = os.strerror(error.errno) if error.errno else error
    mend = "make room there, or make it writable, and start again: what was finished stays"
    return OSError(error.errno, f"{path} cannot be written ({why}); {mend}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Hand out a temporary name beside path; rename it to path only if the block succeeds, remove it otherwise.

    Raises OSError, which names path, where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary.exists():
            temporary.unlink()
