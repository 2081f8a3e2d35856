"""Lease files as a training writes them."""

import json
import os

from robreg.tables.processes import start_time, this_machine


def lease_text(**changes):
    """Return the text of a lease that this process released, with some keys changed."""
    content = {"token": "a", "held": False, "job": None, "pid": os.getpid(), "beat": 0, "stalls": 1}
    return json.dumps(content | {"place": this_machine(), "born": start_time(os.getpid())} | changes)
