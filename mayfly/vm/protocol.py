"""One JSON object a line over a unix stream; a reply may carry one file descriptor.

A request is `{"op": NAME, ...}`. The answer is any number of `{"progress": LINE}` and then one of
`{"ok": true, ...}` or `{"ok": false, "code", "http_status", "message", "hint"}`, with the codes of
`mayfly.errors`. A connection carries one request. Both sides bound a line to `MAX_LINE` bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from mayfly.errors import InfrastructureError, MayflyError, from_code
from mayfly.model import Load, Outcome, Runner, RunnerSpec, Size

MAX_LINE = 1024 * 1024
"""The list of as many VMs as a host may have takes about a tenth of it."""
READ_BYTES = 64 * 1024

Message = dict[str, Any]


def encode(message: Mapping[str, Any]) -> bytes:
    """One line, newline included. Raises `InfrastructureError` when it is over `MAX_LINE`."""
    line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise InfrastructureError(f"a message of {len(line)} bytes is over {MAX_LINE}")
    return line


def decode(line: bytes) -> Message:
    """The object in one line. Raises `InfrastructureError` for anything else."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise InfrastructureError("the peer sent a line that is not JSON") from None
    if not isinstance(message, dict):
        raise InfrastructureError("the peer sent JSON that is not an object")
    return message


def failure(error: MayflyError) -> Message:
    """The answer that says what went wrong."""
    return {
        "ok": False,
        "code": error.code,
        "http_status": error.http_status,
        "message": error.message,
        "hint": error.hint,
    }


def check(message: Message) -> Message:
    """The same message when it says `ok`; raises the error that it reports otherwise."""
    if message.get("ok") is True:
        return message
    raise from_code(
        str(message.get("code", "infrastructure")),
        str(message.get("message", "no reason was given")),
        hint=str(message.get("hint", "")),
        http_status=int(message.get("http_status", 0)),
    )


def runner_to_json(runner: Runner) -> Message:
    return {
        "name": runner.name,
        "size": runner.size,
        "ready": runner.ready,
        "ssh_host_key": runner.ssh_host_key,
        "timings_s": dict(runner.timings_s),
        "age_s": runner.age_s,
        "ended": runner.ended,
        "disk_used_bytes": runner.disk_used_bytes,
        "load": astuple(runner.load) if runner.load else None,
        "cold": runner.cold,
    }


def runner_from_json(data: Mapping[str, Any]) -> Runner:
    return Runner(
        name=str(data["name"]),
        size=str(data["size"]),
        ready=bool(data["ready"]),
        ssh_host_key=str(data["ssh_host_key"]),
        timings_s={str(k): float(v) for k, v in data["timings_s"].items()},
        age_s=float(data["age_s"]),
        ended=Outcome(data["ended"]) if data["ended"] else None,
        disk_used_bytes=int(data["disk_used_bytes"]),
        load=Load(*data["load"]) if data["load"] else None,
        cold=str(data["cold"]),
    )


def spec_to_json(spec: RunnerSpec) -> Message:
    size = spec.size
    return {
        "runner": spec.runner,
        "authorized_key": spec.authorized_key,
        "budget_s": spec.budget_s,
        "scratch_of": spec.scratch_of,
        "spoiled": spec.spoiled,
        "size": {
            "name": size.name,
            "cpus": size.cpus,
            "memory_bytes": size.memory_bytes,
            "disk_bytes": size.disk_bytes,
        },
    }


def spec_from_json(data: Mapping[str, Any]) -> RunnerSpec:
    size = data["size"]
    return RunnerSpec(
        runner=str(data["runner"]),
        authorized_key=str(data["authorized_key"]),
        budget_s=float(data["budget_s"]),
        scratch_of=str(data["scratch_of"]),
        spoiled=str(data["spoiled"]),
        size=Size(
            name=str(size["name"]),
            cpus=int(size["cpus"]),
            memory_bytes=int(size["memory_bytes"]),
            disk_bytes=int(size["disk_bytes"]),
        ),
    )
