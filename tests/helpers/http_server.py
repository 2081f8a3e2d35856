"""Run a web server on this machine, for tests of downloads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves a folder and counts the requests."""

    requests = 0

    def url(self, name: str) -> str:
        """Return the address of a file in the folder."""
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(SimpleHTTPRequestHandler):
    """Serves files silently."""

    def do_GET(self) -> None:
        self.server.requests += 1
        # torchvision closes the connection of its first request, which only follows redirections.
        with suppress(BrokenPipeError, ConnectionResetError):
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Create a folder and serve it while the context is open."""
    folder.mkdir()
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield http
        finally:  # so that the thread also ends if the test fails
            http.shutdown()
            thread.join()
