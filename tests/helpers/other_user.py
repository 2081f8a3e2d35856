"""Act as another user of this machine, which only root may do."""

import os
import shutil
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest

ATTACKER, MEMBER, GROUP = 65534, 65533, 65532  # no such users or groups need to exist
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def act(user, what, *, umask=0o022):
    """Call a function in a child process as a user, who is a member of GROUP; return the child's exit status."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.umask(umask)
        os.setgroups([GROUP])
        os.setgid(user)
        os.setuid(user)
        what()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@contextmanager
def shared_folder(mode):
    """Make a folder of GROUP that every user can reach, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="robreg-test-"))
    os.chown(folder, 0, GROUP)
    folder.chmod(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
