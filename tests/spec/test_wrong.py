"""Two hundred wrong specs: each is refused with its reason, and none gets as far as a lease."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mayfly import flow, spec
from mayfly.config import Config
from mayfly.errors import SchemaError
from mayfly.model import BuildSpec, LeaseRequest
from tests.orchestrator.leases import KEY, configuration, farm
from tests.spec.wrong import Wrong, wrong_specs

WRONG = list(wrong_specs())


def _prepared(folder: Path, wrong: Wrong, config: Config) -> flow.Request | SchemaError:
    """`mayfly build .` beside the spec, up to where a lease is asked for."""
    root = folder / "repo"
    (root / ".git").mkdir(parents=True)
    (root / "Dockerfile").touch()
    wrong.make(root)
    (root / spec.NAME).write_bytes(wrong.data)
    try:
        return flow.prepare(["."], config, {}, root)
    except SchemaError as error:
        return error


async def test_each_is_refused_with_its_place_and_reason_and_no_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "buildx_of", lambda config: Path("/bin/false"))
    assert len(WRONG) >= 200
    assert min(Counter(wrong.kind for wrong in WRONG).values()) >= 3
    loop = asyncio.get_running_loop()
    async with farm(configuration(tmp_path / "state")) as f:
        with ThreadPoolExecutor(3) as pool:

            async def tried(number: int, wrong: Wrong) -> flow.Request | SchemaError:
                """As `mayfly build` goes on: to the farm with whatever was not refused."""
                folder = tmp_path / str(number)
                got = await loop.run_in_executor(pool, _prepared, folder, wrong, f.config)
                if isinstance(got, flow.Request):
                    await f.api.ask(LeaseRequest(got.repo, KEY, spec=got.spec), str(number))
                return got

            found = await asyncio.gather(*(tried(n, wrong) for n, wrong in enumerate(WRONG)))
            assert "create" not in {call for call, _ in f.provider.calls}
            good = await tried(len(WRONG), Wrong("good", b"{ cpu = 2 }", ""))
        assert isinstance(good, flow.Request) and good.spec == BuildSpec(cpu=2)
        (lease,) = f.ledger.recent(len(WRONG))
        await f.until(lease.id, "ready")
        assert ("create", lease.runner) in f.provider.calls
    faults = [
        f"{wrong.kind} {wrong.data[:70]!r}: {why}\n{error}"
        for wrong, error in zip(WRONG, found, strict=True)
        if (why := _against(wrong, error))
    ]
    assert not faults, "\n\n".join(faults)


def _against(wrong: Wrong, error: flow.Request | SchemaError) -> str:
    """What is not as it should be; empty when nothing is."""
    if isinstance(error, flow.Request):
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
