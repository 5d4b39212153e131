"""A small HTTP service and a client that measures it; each is a process of its own.

    python -m bench.service serve           prints its port, serves until its input ends
    python -m bench.service ask PORT N HZ   prints N latencies in seconds, as JSON

Standard library only, so that both start at once and take little. The client asks at a fixed rate
over one kept connection, and counts from when a request was due: a late answer also makes late what
stands behind it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

BODY = b"x" * 4096


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with a few kB and their checksum: some tenths of a millisecond of work."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        digest = hashlib.sha256(BODY).hexdigest()
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("ETag", digest)
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


def serve() -> None:
    """Serve on loopback until standard input ends."""
    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


def ask(port: int, count: int, per_second: float) -> list[float]:
    """Seconds from when each request was due to its answer's last byte."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    taken = []
    started_at = time.monotonic() + 0.1
    for number in range(count):
        due = started_at + number / per_second
        time.sleep(max(0.0, due - time.monotonic()))
        connection.request("GET", "/")
        connection.getresponse().read()
        taken.append(time.monotonic() - due)
    connection.close()
    return taken


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(ask(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
