"""What runs: who has our port, and whether each program of a running farm does its work."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mayfly import client, stack
from mayfly.config import Config
from mayfly.doctor.check import Check, as_root, fail, ok, warn
from mayfly.errors import MayflyError
from mayfly.install import running, units
from mayfly.install.places import Places
from mayfly.stack import record

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
    found = _farm(config)
    if found is not None and any(service.alive for service in found.services):
        return ok("address", f"{config.server.listen} is this farm's")
    who = listener(port)
    if who is None:
        return fail(
            "address",
            f"{config.server.listen}: {error.strerror}",
            "choose another: MAYFLY_SERVER__LISTEN=127.0.0.1:5001 mayfly up",
        )
    pid, name = who
    left = record.load(config.run)
    if left is not None and pid in {kept.process.pid for kept in left.services.values()}:
        return warn(
            "address",
            f"{config.server.listen} is this farm's, whose supervisor has died",
            "mayfly up --detach",
        )
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
    found = _farm(config)
    if found is None:
        yield ok("farm", "not running: `mayfly up --detach` starts it")
        return
    if not any(service.alive for service in found.services):
        yield fail("farm", "installed and not running", "systemctl start mayfly.target")
        return
    for service in found.services:
        if not service.alive:
            yield fail(service.name, "is not running", found.see(service.name))
        elif service.restarts:
            died = f"runs, and died {service.restarts} times"
            yield warn(service.name, died, found.see(service.name))
        else:
            yield ok(service.name, f"runs (process {service.pid})")
    yield from _answers(config, found)


@dataclass(frozen=True, slots=True)
class _Farm:
    """Programs that run together, and the command that shows what one of them says."""

    services: tuple[stack.ServiceStatus, ...]
    see: Callable[[str], str]


def _farm(config: Config) -> _Farm | None:
    """This state's farm, installed or by `mayfly up`; None where there is none."""
    installed = running.running(config.state, Places())
    if installed is not None:
        return _Farm(installed, lambda name: f"journalctl --unit {units.name(name)}")
    up = stack.running(config)
    if up is None:
        return None
    return _Farm(up.services, lambda name: f"tail {config.state / 'log' / name}.log")


def _answers(config: Config, found: _Farm) -> Iterator[Check]:
    """A question through the edge to the orchestrator, and one to a registry of ours."""
    try:
        token = client.token(config, {})
        tls = client.tls_context(config.state / "ca" / "ca.crt")
    except MayflyError as error:
        yield warn("answers", error.message, as_root())
        return
    url = client.local_url(config)
    questions: dict[str, Callable[[], int]] = {
        "orchestrator": lambda: _answer(f"{url}/v1/status", f"Bearer {token}", tls)[0],
        "registry": lambda: registry_status(url, token, tls),
    }
    for name, ask in questions.items():
        if name not in {service.name for service in found.services}:
            continue
        status = ask()
        if status in (200, 404):
            yield ok(f"{name} answers", f"{url}: {status}")
        else:
            yield fail(f"{name} answers", f"{url}: {status or 'nothing'}", found.see(name))


def registry_status(url: str, token: str, tls: ssl.SSLContext) -> int:
    """What the registry says about an image that need not be there, for which it asks its bucket.

    `token` buys one for that, as Docker's clients do; the status of a failing purchase counts.
    """
    name = "images/base/doctor"
    password = base64.b64encode(f"doctor:{token}".encode()).decode()
    scope = f"{url}/token?scope=repository:{name}:pull"
    status, body = _answer(scope, f"Basic {password}", tls)
    if status != 200:
        return status
    bought = json.loads(body)["token"]
    return _answer(f"{url}/v2/{name}/manifests/latest", f"Bearer {bought}", tls)[0]


def _answer(url: str, authorization: str, tls: ssl.SSLContext) -> tuple[int, bytes]:
    """The HTTP status of an answer, and its body; 0 when there is none within `ANSWER_S`."""
    request = urllib.request.Request(url, headers={"Authorization": authorization})  # noqa: S310
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
    )
    try:
        with opener.open(request, timeout=ANSWER_S) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""
