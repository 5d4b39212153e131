"""What runs: who has our port, and whether each program of a running farm does its work."""

from __future__ import annotations

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path

from mayfly import client, stack
from mayfly.config import Config
from mayfly.doctor.check import Check, as_root, fail, ok, warn
from mayfly.errors import MayflyError

ANSWER_S = 10
_LISTENS = "0A"  # TCP_LISTEN in /proc/net/tcp


def address(config: Config) -> Iterator[Check]:
    """Somebody else on our port is a fault; our own farm is not."""
    host, _, port = config.server.listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            yield _taken(config, int(port), error)
            return
    yield ok("address", f"{config.server.listen} is free")


def _taken(config: Config, port: int, error: OSError) -> Check:
    running = stack.running(config)
    if running is not None:
        return ok("address", f"{config.server.listen} is this farm's")
    who = listener(port)
    if who is None:
        return fail(
            "address",
            f"{config.server.listen}: {error.strerror}",
            "choose another: MAYFLY_SERVER__LISTEN=127.0.0.1:5001 mayfly up",
        )
    pid, name = who
    return fail(
        "address",
        f"{config.server.listen} is taken by {name} (process {pid})",
        f"kill {pid}, or choose another: MAYFLY_SERVER__LISTEN=127.0.0.1:5001 mayfly up",
    )


def listener(port: int) -> tuple[int, str] | None:
    """The process that listens at a TCP port, and its name; None when it cannot be told.

    Without root only one's own processes can be looked at.
    """
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(str(file.readlink()) in inodes for file in folder.iterdir()):
                return int(folder.parent.name), (folder.parent / "comm").read_text().strip()
        except OSError:
            continue
    return None


def farm(config: Config) -> Iterator[Check]:
    """Each program of a farm that runs; nothing is wrong with one that does not."""
    running = stack.running(config)
    if running is None:
        yield ok("farm", "not running: `mayfly up --detach` starts it")
        return
    for service in running.services:
        log = config.state / "log" / f"{service.name}.log"
        if not service.alive:
            yield fail(service.name, "is not running", f"tail {log}")
        elif service.restarts:
            yield warn(service.name, f"runs, and died {service.restarts} times", f"tail {log}")
        else:
            yield ok(service.name, f"runs (process {service.pid})")
    yield from _answers(config, {service.name for service in running.services})


def _answers(config: Config, programs: Collection[str]) -> Iterator[Check]:
    """A question through the edge to the orchestrator, and one to a registry of ours."""
    try:
        token = client.token(config, {})
        tls = client.tls_context(config.state / "ca" / "ca.crt")
    except MayflyError as error:
        yield warn("answers", error.message, as_root())
        return
    url = client.local_url(config)
    logs = config.state / "log"
    for name, path, good in (
        ("orchestrator", "/v1/status", {200}),
        ("registry", "/v2/images/base/doctor/tags/list", {200, 404}),
    ):
        if name not in programs:
            continue
        status = _status(f"{url}{path}", token, tls)
        if status in good:
            yield ok(f"{name} answers", f"{url}{path}: {status}")
        else:
            yield fail(
                f"{name} answers", f"{url}{path}: {status or 'nothing'}", f"tail {logs}/{name}.log"
            )


def _status(url: str, token: str, tls: ssl.SSLContext) -> int:
    """The HTTP status of an answer; 0 when there is none within `ANSWER_S`."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
    )
    try:
        with opener.open(request, timeout=ANSWER_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
