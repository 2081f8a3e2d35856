"""No connection to another machine: Python imports this when it starts, where PYTHONPATH names its folder.

A connection, or the look-up of a name, is noted in the file that CONNECTIONS names, for it may be tried and forgiven
far from a test's eyes, and raises PermissionError.
"""

import os
import sys

_CONNECTIONS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_NAMES = ("socket.getaddrinfo", "socket.gethostbyname")
_HERE = ("", "localhost", "::1", "0.0.0.0", "::")


def refuse(event, arguments):
    """Refuse an audited event of module socket unless it stays on this machine."""
    if event in _CONNECTIONS:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else ""  # a file's name is no host
    elif event in _NAMES:
        host = arguments[0] or ""
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in _HERE or host.startswith("127."):
        return
    with open(os.environ["CONNECTIONS"], "a") as file:
        file.write(f"{event} {host} by {' '.join(sys.argv)}\n")
    raise PermissionError(f"tests open no connection to other machines, but {event} {host} was tried")


sys.addaudithook(refuse)
