"""The table of programs that `mayfly up` runs, in order. Pure: configuration in, table out."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mayfly
from mayfly import users
from mayfly.config import S3, Config
from mayfly.registry import distribution
from mayfly.stack import launch, seaweed


@dataclass(frozen=True, slots=True)
class Probe:
    """How to see that a program serves.

    `address` is a unix socket's path, or `HOST:PORT`. With `path`, HTTP GET of it must be answered
    with one of `statuses`; with `line`, something must be answered to that line. Without both it is
    enough that the connection is accepted, which says nothing of a program that hangs.
    `tls`: whose certificate it has, and whether that is still good, is not the question here. A
    program is not ended for that.
    """

    address: Path | str
    path: str = ""
    statuses: frozenset[int] = frozenset()
    tls: bool = False
    line: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """One program.

    `once`: it runs to its end (exit 0) before the next is started, and is not kept running.
    `listen`: `ADDRESS:PORT` of a TCP socket that is opened for it and stays open while it restarts;
    it finds the descriptor's number in `MAYFLY_EDGE_FD`.
    `needs`: paths that it uses, besides the system's. Programs of root see everything.
    `version`: changes when a running one of an earlier start must not be kept.
    """

    name: str
    argv: tuple[str, ...]
    uid: int
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[Path, ...] = ()
    ready: Probe | None = None
    once: bool = False
    listen: str = ""
    version: str = ""
    stop_s: float = 10

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command line, with the step that gives up privileges."""
        if self.uid == users.ROOT:
            return self.argv
        needs = (part for path in self.needs for part in ("--need", str(path)))
        front = (sys.executable, "-I", launch.__file__)
        return (*front, "--uid", str(self.uid), *needs, "--", *self.argv)

    @property
    def fingerprint(self) -> str:
        """Equal for two services that are run in the same way."""
        what = [self.command, sorted(self.env.items()), self.listen, self.version]
        return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The registry that Mayfly runs: its program, the file that configures it, and its bucket,
    of which everything is known (`seaweed.prepare`, or the configured one).
    """

    program: Path
    file: Path
    s3: S3


def table(config: Config, registry: Embedded | None, settings: Path) -> tuple[Service, ...]:
    """Every program, in the order of starting; they are stopped in the reverse order.

    The kind of registry in `config` is settled; `registry` is None where it is somebody else's.
    `settings` is the file with the configuration for all of them.
    """
    python = (sys.executable, "-I", "-m")
    code = (Path(sys.prefix), Path(mayfly.__file__).parent, config.state)
    version = f"{mayfly.__version__} {_digest(settings)}"
    base = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    base |= {"LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "MAYFLY_CACHE": str(config.cache)}
    base |= {"MAYFLY_CONFIG": str(settings), "MAYFLY_STATE": str(config.state)}
    run = config.run
    secret = {
        "MAYFLY_METRICS__PASSWORD": config.metrics.password,
        "MAYFLY_WOODPECKER__TOKEN": config.woodpecker.token,
    }
    secret = {name: json.dumps(value) for name, value in secret.items() if value}
    authorities = tuple(Path(issuer.ca) for issuer in config.oidc.values() if issuer.ca)

    services = [] if registry is None else _registry(config, registry, base, python, code, version)
    # Where the bucket is, and none of its keys: see `mayfly.edge.app.Edge`.
    at = {"MAYFLY_S3__ENDPOINT": json.dumps(registry.s3.endpoint)} if registry else {}
    services += [
        Service(
            name="host",
            argv=(*python, "mayfly.host"),
            uid=users.ROOT,
            cwd=config.state,
            env=base,
            ready=Probe(run / "dial.sock", line='{"op": "list"}'),
            version=version,
            stop_s=30,
        ),
        Service(
            name="edge",
            argv=(*python, "mayfly.edge"),
            uid=users.EDGE,
            cwd=config.state,
            env={**base, **at},
            needs=code,
            ready=Probe(
                reachable(config.server.listen),
                "/v2/",
                frozenset({401 if registry else 404}),
                tls=True,
            ),
            listen=config.server.listen,
            version=version,
        ),
        Service(
            name="orchestrator",
            argv=(*python, "mayfly.orchestrator"),
            uid=users.ORCHESTRATOR,
            cwd=config.state / "orchestrator",
            env={**base, **secret},
            needs=(*code, *authorities),
            ready=Probe(run / "api" / "orchestrator.sock", "/healthz", frozenset({200})),
            version=version,
        ),
        Service(
            name="builders",
            argv=(*python, "mayfly.builders"),
            uid=users.BUILDERS,
            cwd=config.state,
            # What asyncssh wants to know, and no passwd entry says.
            env={**base, "USER": "mayfly", "HOME": "/nonexistent"},
            needs=code,
            ready=Probe(run / "builders" / ".status", line="?"),
            version=version,
            stop_s=15,
        ),
    ]
    return tuple(services)


def _registry(
    config: Config,
    registry: Embedded,
    base: Mapping[str, str],
    python: tuple[str, ...],
    code: tuple[Path, ...],
    version: str,
) -> list[Service]:
    """The object store, unless it is somebody else's; the bucket; the registry."""
    s3, services = registry.s3, list[Service]()
    if not config.s3.endpoint:
        place = seaweed.folder(config)
        services.append(
            Service(
                name="s3",
                argv=seaweed.argv(seaweed.binary(), place, seaweed.ports(place)),
                uid=users.S3,
                cwd=seaweed.data(config),
                env={**base, "HOME": str(seaweed.data(config)), "GOMEMLIMIT": seaweed.MEMORY},
                needs=(config.state, seaweed.binary()),
                ready=Probe(s3.endpoint.removeprefix("http://"), "/", frozenset({200, 403})),
                # Its orderly end waits 15 s for connections among its own parts. What is written is
                # with the kernel at once, so a kill loses nothing; tests/stack/test_seaweed.py.
                stop_s=2,
            )
        )
    is_zot = config.registry.kind == "zot"
    # Both read the key of the edge when they start, and never again.
    files = " ".join(_digest(path) for path in (registry.file, distribution.jwks(config)))
    services += [
        Service(
            name="bucket",
            argv=(*python, "mayfly.registry.bucket"),
            uid=users.REGISTRY,
            cwd=config.state / "registry",
            env={
                **base,
                "MAYFLY_S3__ENDPOINT": json.dumps(s3.endpoint),
                "MAYFLY_S3__ACCESS_KEY": json.dumps(s3.access_key),
                "MAYFLY_S3__SECRET_KEY": json.dumps(s3.secret_key),
            },
            needs=code,
            once=True,
        ),
        Service(
            name="registry",
            argv=(str(registry.program), "serve", str(registry.file)),
            uid=users.REGISTRY,
            cwd=config.state / "registry",
            # Of the machine's own variables none: AWS_CA_BUNDLE would end distribution at once.
            env={"PATH": base["PATH"], "HOME": "/nonexistent", "OTEL_TRACES_EXPORTER": "none"},
            needs=(config.state, registry.program),
            ready=Probe(
                f"127.0.0.1:{config.registry.port}" if is_zot else distribution.socket(config),
                "/v2/",
                frozenset({401}),
            ),
            version=f"{version} {files}",
        ),
    ]
    return services


def reachable(listen: str) -> str:
    """An address at which this machine itself reaches what listens at `listen`."""
    host, _, port = listen.rpartition(":")
    own = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - read, not bound
    return f"{own.get(host, host)}:{port}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
