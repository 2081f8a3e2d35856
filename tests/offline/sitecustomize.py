"""Refuse connections to other machines. Python imports this module at start if PYTHONPATH contains its folder.

A connection or the look-up of a name raises PermissionError. It is also recorded in the file that CONNECTIONS names,
because the error may be caught where no test sees it.
"""

import os
import sys

_CONNECTIONS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_NAMES = ("socket.getaddrinfo", "socket.gethostbyname")
_HERE = ("", "localhost", "::1", "0.0.0.0", "::")


def refuse(event, arguments):
    """Raise PermissionError for an audit event of the socket module that concerns another machine."""
    if event in _CONNECTIONS:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else ""  # the address of a Unix socket is a file name
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
