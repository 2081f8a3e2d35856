"""Run a web server on this machine, for tests of downloads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves a folder and counts the requests.

    faults: what goes wrong with the next requests, in order: "cut" and "stall" after a third of the file, "trickle",
    "endless", "wrong part", "short" (cut, without saying how much was to come), "slow headers", "pause" (half a
    second, and no fault); sends_parts: whether it sends the part of a file that is asked for; sent: the first byte
    of each answer to a request with a fault or for a part.
    """

    requests = 0
    sends_parts = True

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.faults: list[str] = []
        self.sent: list[int] = []
        self.stopped = threading.Event()

    def url(self, name: str) -> str:
        """Return the address of a file in the folder."""
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(SimpleHTTPRequestHandler):
    """Serves files silently."""

    def do_GET(self) -> None:
        self.server.requests += 1
        fault = self.server.faults.pop(0) if self.server.faults else ""
        with suppress(BrokenPipeError, ConnectionResetError):  # a client may leave early
            if fault == "slow headers":
                for letter in b"HTTP/1.0 200 OK\r\nX: " + b"x" * 500:
                    if not self.server.stopped.wait(0.02):
                        self.wfile.write(bytes([letter]))
            elif fault or "Range" in self.headers:
                self.send_part(fault)
            else:
                super().do_GET()

    def send_part(self, fault: str) -> None:
        """Send a file from the byte that was asked for, if the server can, and with a fault."""
        content = Path(self.translate_path(self.path)).read_bytes()
        asked = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        start = asked if self.server.sends_parts else 0
        self.server.sent.append(start)
        if start >= len(content):
            self.send_error(416)
            return
        if fault == "pause":
            self.server.stopped.wait(0.5)
        self.send_response(206 if start else 200)
        if start:
            stated = 0 if fault == "wrong part" else start
            self.send_header("Content-Range", f"bytes {stated}-{len(content) - 1}/{len(content)}")
        if fault not in ("endless", "short"):
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        parts = {"cut": len(content) // 3, "short": len(content) // 3, "stall": len(content) // 3, "trickle": 0}
        self.wfile.write(content[start : start + parts.get(fault, len(content))])
        if fault == "stall":
            self.server.stopped.wait(5)
        for _ in range({"endless": 1000, "trickle": 250}.get(fault, 0)):  # so that code without limits comes to an end
            if not self.server.stopped.wait(0.02 if fault == "trickle" else 0):
                self.wfile.write(b"?" * (1 if fault == "trickle" else 2**16))

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
            http.stopped.set()
            http.shutdown()
            thread.join()
