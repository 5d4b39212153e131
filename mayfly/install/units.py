"""The table of programs (`stack/services.py`) as units of systemd. Pure.

The host's VMs are in control groups of their own at the top of the hierarchy (`host/cgroup.py`,
with a weight far below the default) and no children of its unit, which kills its main process only:
so a restart touches no build. Everything else of Mayfly is in `mayfly.slice`, which has half of
the weight that the services beside it have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mayfly.install.places import Places
from mayfly.stack.services import Probe, Service
from mayfly.stack.supervise import READY_S

TARGET = "mayfly.target"
SLICE = "mayfly.slice"
LOOK = "mayfly-look.service"
LISTEN_FD = 3
"""The first descriptor that systemd hands over (sd_listen_fds(3))."""

WEIGHT = 50
"""Of the 100 that a unit has for CPU and IO where nothing is said (systemd.resource-control(5))."""

_HEAD = "# Made by `mayfly install`; changes here are overwritten.\n"


def name(service: str) -> str:
    """The unit of a program."""
    return f"mayfly-{service}.service"


def program(unit: str) -> str:
    """The program of a unit, by the unit's name."""
    return unit.removeprefix("mayfly-").removesuffix(".service")


def sockets(table: Sequence[Service]) -> tuple[str, ...]:
    """The units of sockets that stay open while their program restarts."""
    return tuple(f"mayfly-{each.name}.socket" for each in table if each.listen)


def render(table: Sequence[Service], python: Path, places: Places) -> Mapping[str, str]:
    """Every unit's text by its file's name. `python` is that of the code that the table is of."""
    texts = {
        TARGET: _target([*sockets(table), *(name(each.name) for each in table), LOOK]),
        SLICE: _text(
            ("Unit", [("Description", "Mayfly, less its builds")]),
            ("Slice", [("CPUWeight", str(WEIGHT)), ("IOWeight", str(WEIGHT))]),
        ),
    }
    before: list[str] = []
    for each in table:
        if each.listen:
            texts[f"mayfly-{each.name}.socket"] = _socket(each)
        texts[name(each.name)] = _service(each, before, python, places)
        before.append(name(each.name))
    texts[LOOK] = _look(before, python, places)
    return texts


def environments(table: Sequence[Service]) -> Mapping[str, str]:
    """Every program's variables as a file for `EnvironmentFile=`, by the program's name."""
    return {
        each.name: "".join(f"{key}={_quoted(value)}\n" for key, value in _variables(each))
        for each in table
    }


def probes(table: Sequence[Service]) -> str:
    """How to see that each program serves, as JSON; `probe` reads one of them."""
    found = {each.name: _probe_json(each.ready) for each in table if each.ready}
    return json.dumps(found, indent=2) + "\n"


def probe(data: Mapping[str, Any]) -> Probe:
    """A probe as `probes` wrote it."""
    address = data["address"]
    return Probe(
        Path(address) if address.startswith("/") else address,
        data["path"],
        frozenset(data["statuses"]),
        data["tls"],
        data["line"],
    )


def _probe_json(found: Probe) -> Mapping[str, object]:
    return {
        "address": str(found.address),
        "path": found.path,
        "statuses": sorted(found.statuses),
        "tls": found.tls,
        "line": found.line,
    }


def _variables(service: Service) -> Iterator[tuple[str, str]]:
    yield from sorted(service.env.items())
    if service.listen:
        yield "MAYFLY_EDGE_FD", str(LISTEN_FD)


def _target(members: Sequence[str]) -> str:
    return _text(
        ("Unit", [("Description", "Mayfly"), ("Wants", " ".join(members))]),
        ("Install", [("WantedBy", "multi-user.target")]),
    )


def _socket(service: Service) -> str:
    return _text(
        ("Unit", [("Description", f"Mayfly: where {service.name} listens"), ("PartOf", TARGET)]),
        ("Socket", [("ListenStream", service.listen), ("NoDelay", "true")]),
    )


def _service(service: Service, before: Sequence[str], python: Path, places: Places) -> str:
    unit = [("Description", f"Mayfly: {service.name}"), ("PartOf", TARGET)]
    first = ["network-online.target", *before]
    if service.listen:
        own = f"mayfly-{service.name}.socket"
        unit.append(("Requires", own))
        first.append(own)
    unit += [
        ("Wants", "network-online.target"),
        ("After", " ".join(first)),
        ("StartLimitIntervalSec", "0"),
        ("X-Mayfly-Fingerprint", service.fingerprint),
    ]
    run = [
        ("Type", "oneshot" if service.once else "exec"),
        ("Slice", SLICE),
        ("ExecStart", command(service.command)),
        ("EnvironmentFile", _specifier(str(places.environment / f"{service.name}.env"))),
        ("WorkingDirectory", _specifier(str(service.cwd))),
        ("TimeoutStartSec", str(READY_S + 30)),
        ("TimeoutStopSec", f"{service.stop_s:g}"),
        # Of the host's children none ends with it; of the others' all do.
        ("KillMode", "process" if service.name == "host" else "mixed"),
    ]
    if service.once:
        run.append(("RemainAfterExit", "yes"))
    else:
        run += [("Restart", "always"), ("RestartSec", "1")]
    if service.ready:
        words = (str(python), "-I", "-m", "mayfly.install.look", str(places.probes), service.name)
        run.append(("ExecStartPost", command(words)))
    return _text(("Unit", unit), ("Service", run))


def _look(services: Sequence[str], python: Path, places: Places) -> str:
    words = (str(python), "-I", "-m", "mayfly.install.look", str(places.probes))
    return _text(
        (
            "Unit",
            [
                ("Description", "Mayfly: starts again what runs and does not serve"),
                ("PartOf", TARGET),
                ("After", " ".join(services)),
            ],
        ),
        (
            "Service",
            [
                ("Type", "exec"),
                ("Slice", SLICE),
                ("ExecStart", command(words)),
                ("EnvironmentFile", _specifier(str(places.environment / "host.env"))),
                ("Restart", "always"),
                ("RestartSec", "5"),
            ],
        ),
    )


def command(words: Sequence[str]) -> str:
    """A command line for `ExecStart=` (systemd.service(5), "Command lines")."""
    return " ".join(_word(_specifier(word).replace("$", "$$")) for word in words)


def _word(word: str) -> str:
    if word and not set(word) & set(" \t\n\"'\\;"):
        return word
    return _quoted(word)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _specifier(value: str) -> str:
    return value.replace("%", "%%")


def _text(*sections: tuple[str, Sequence[tuple[str, str]]]) -> str:
    parts = [
        f"[{title}]\n" + "".join(f"{key}={value}\n" for key, value in lines)
        for title, lines in sections
    ]
    return _HEAD + "\n".join(parts)
