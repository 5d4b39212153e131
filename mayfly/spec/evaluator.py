"""A spec's text to a `BuildSpec`: evaluated in a process of its own that has nothing to lose.

`confine.py` is that process. What it answers is checked again here: nothing is believed because
Nickel said it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mayfly.errors import MachineUnfit, SchemaError
from mayfly.model import BuildSpec
from mayfly.shipped import shipped
from mayfly.spec import confine, report
from mayfly.spec.form import FIELDS, SpecForm
from mayfly.spec.source import Source

CONTRACT = shipped("schemas/lib/build_spec.ncl")
LONGEST_S = 7.0
"""Of the whole evaluation; the process ends itself a little sooner."""

_COMPUTED = frozenset({signal.SIGPROF, signal.SIGXCPU, signal.SIGKILL})
_MEMORY = ("memory allocation of", "out of memory", "MemoryError")


def evaluate(source: Source, nickel: Path | None = None) -> BuildSpec:
    """What the spec declares. `nickel` is the folder that Nickel's module is in, if not the usual.

    Raises `SchemaError`, after 2 s of computing and 7 s of all at the latest, for a spec that is
    wrong in any way or takes more time or memory than it may, and `MachineUnfit` where this kernel
    cannot confine a process.
    """
    question = {
        "nickel": str(nickel or _nickel()),
        "spec": source.text,
        "contract": CONTRACT.read_text(),
        "root": str(source.root),
        "folder": str(source.folder),
    }
    answer = _answer(question, source)
    if "unfit" in answer:
        raise MachineUnfit(
            f"a build spec cannot be evaluated safely here: {answer['unfit']}",
            hint="it takes Linux with seccomp, on amd64 or arm64",
        )
    held, alone = answer["held"], answer["alone"]
    if "fault" in held or "fault" in alone:
        raise _fault(held, alone, source, reads=answer["reads"])
    try:
        return SpecForm.model_validate_json(held["value"]).spec()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SchemaError(f"{where}: {first['msg']}", file=source.shown) from None


def _answer(question: Mapping[str, str], source: Source) -> dict[str, Any]:
    """What the process said. Raises `SchemaError` when it did not live to say anything."""
    # Files in memory, not pipes: their size is limited by the kernel, and nobody need read along.
    with (
        os.fdopen(os.memfd_create("answer"), "r+b") as out,
        os.fdopen(os.memfd_create("complaints"), "r+b") as complaints,
    ):
        try:
            status = subprocess.run(
                [sys.executable, "-I", "-S", confine.__file__],
                input=json.dumps(question).encode(),
                stdout=out,
                stderr=complaints,
                env={},
                cwd="/",
                timeout=LONGEST_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = -signal.SIGALRM
        out.seek(0)
        complaints.seek(0)
        said = complaints.read().decode(errors="replace")
        if status == 0:
            return dict(json.load(out))
    raise _ended(status, said, source)


def _ended(status: int, said: str, source: Source) -> SchemaError:
    return SchemaError(_end(status, said), file=source.shown, expected="a spec that evaluates")


def _end(status: int, said: str) -> str:
    if any(word in said for word in _MEMORY):
        return f"takes more than {confine.MEMORY_BYTES >> 20} MiB of memory to evaluate"
    if -status == signal.SIGALRM:
        return f"is not evaluated after {confine.WALL_S:g} s"
    if -status in _COMPUTED:
        return f"takes more than {confine.CPU_S} s to evaluate"
    if -status in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
        return "is nested too deeply, or recurs without end"
    return "amounts to more than a build spec"


def _fault(
    held: Mapping[str, str], alone: Mapping[str, str], source: Source, *, reads: bool
) -> SchemaError:
    """What to say of two reports: of the one by contract, unless it shows no place and the other
    one is there: then the spec is not even Nickel by itself.
    """
    found = report.parse(held.get("fault", ""), source, confine.PREFIX.count("\n"))
    if not found.line and "fault" in alone:
        found = report.parse(alone["fault"], source)
    if any(word in found.headline for word in _MEMORY):
        return _ended(0, found.headline, source)
    error = report.error(found, source, FIELDS)
    if not reads and found.headline.startswith("import of"):
        error.hint = "this kernel has no Landlock (Linux 5.13), without which nothing is imported"
    return error


def _nickel() -> Path:
    found = importlib.util.find_spec("nickel")
    assert found is not None and found.origin is not None  # noqa: S101 - a dependency
    return Path(found.origin).parent.parent
