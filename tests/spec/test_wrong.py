"""Two hundred wrong specs: each is refused with its reason, and none gets as far as a lease."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mayfly import spec
from mayfly.errors import SchemaError
from tests.spec.wrong import Wrong, wrong_specs

WRONG = list(wrong_specs())


def _error(folder: Path, wrong: Wrong) -> SchemaError | str:
    """What the spec is refused with, or what it amounts to."""
    root = folder / "repo"
    root.mkdir(parents=True)
    wrong.make(root)
    file = root / spec.NAME
    file.write_bytes(wrong.data)
    try:
        return f"it is {spec.load(file, root, spec.NAME)}"
    except SchemaError as error:
        return error


def test_each_is_refused_with_its_place_and_reason(tmp_path: Path) -> None:
    assert len(WRONG) >= 200
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda n: _error(tmp_path / str(n), WRONG[n]), range(len(WRONG))))
    faults = [
        f"{wrong.kind} {wrong.data[:70]!r}: {why}\n{error}"
        for wrong, error in zip(WRONG, found, strict=True)
        if (why := _against(wrong, error))
    ]
    assert not faults, "\n\n".join(faults)
    assert min(Counter(wrong.kind for wrong in WRONG).values()) >= 3


def _against(wrong: Wrong, error: SchemaError | str) -> str:
    """What is not as it should be; empty when nothing is."""
    if isinstance(error, str):
        return "accepted"
    head, *excerpt = str(error).splitlines()
    where = (spec.NAME, error.line, error.column) if error.line else (spec.NAME,)
    checks = {
        "its message": wrong.says in head,
        "the file": head.startswith("".join(f"{part}:" for part in where)),
        "what was expected": bool(error.expected),
        "the line": wrong.line is None or (wrong.line or error.line) == error.line > 0,
        "the caret": not excerpt or (len(excerpt) == 2 and set(excerpt[1]) <= set(" |^")),
        "printable": all(line.isprintable() for line in (head, *excerpt)),
        "its length": len(head) < 600 and all(len(line) < 120 for line in excerpt),
        "its status": error.exit_status == 3,
    }
    return ", ".join(name for name, good in checks.items() if not good)
