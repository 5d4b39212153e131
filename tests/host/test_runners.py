"""The bookkeeping of runners: slots, second calls, failures and what comes in between.

Making and unmaking are put in by the tests; real VMs are in tests/farm.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from mayfly.config import Config, Network
from mayfly.errors import InfrastructureError, NotFound, UsageError
from mayfly.host import handover
from mayfly.host import runners as module
from mayfly.host.cgroup import Groups, Tree
from mayfly.host.clone import guest_timings
from mayfly.host.machine import Machine
from mayfly.host.record import Record, read_record, write_record
from mayfly.host.runners import Runners
from mayfly.host.template import Template
from mayfly.model import GIB, MIB, Outcome, RunnerSpec, Size
from mayfly.pid import ProcessId
from tests.host.waiting import until

MACHINE = Machine((10, 0, 2), "tcg", "test", 2, 24 * GIB, "a cpu", 500 * GIB)
TEMPLATE: Any = type("T", (), {"key": "k"})()


def spec(name: str) -> RunnerSpec:
    return RunnerSpec(name, Size("t1", 1, GIB, 4 * GIB), "ssh-ed25519 AAAA", 60)


class Here(Runners):
    """Runners whose making and unmaking are `makes` and `unmakes`."""

    def __init__(self, state: Path) -> None:
        super().__init__(Config(state=state), MACHINE, Groups("test", Tree({})))
        self.makes: Callable[[Record], Awaitable[None]] = self._nothing
        self.unmakes: Callable[[str], Awaitable[None]] = self._nothing
        self.process = ProcessId.of(os.getpid())
        self.ends_at_s = 0.0

    async def _nothing(self, _: object) -> None:
        """No work."""

    async def _clone(self, record: Record, spec: RunnerSpec, template: Template) -> Record:
        self._directory(record.name).mkdir(parents=True)
        await self.makes(record)
        return replace(record, ready=True, process=self.process, ends_at_s=self.ends_at_s)

    async def _unmake(self, runner: str, record: Record | None) -> None:
        await self.unmakes(runner)
        shutil.rmtree(self._directory(runner), ignore_errors=True)

    def slot(self, runner: str) -> int:
        return self._records[runner].slot


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    async def none(name: str, directory: Path) -> None:
        """Nothing was left by a crash."""

    monkeypatch.setattr(module, "end_named", none)
    return Here(tmp_path)


async def fails(_: object) -> None:
    raise InfrastructureError("no")


async def test_the_same_name_again_is_the_runner_that_is_there(here: Here) -> None:
    first = await here.create(spec("a-1"), TEMPLATE)
    assert await here.create(spec("a-1"), TEMPLATE) == first
    assert [runner.name for runner in here.list()] == ["a-1"]


async def test_a_slot_is_taken_until_all_of_its_runner_is_gone(here: Here) -> None:
    unmaking, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(_: str) -> None:
        unmaking.set()
        await go_on.wait()

    here.makes, here.unmakes = fails, slowly
    failing = asyncio.create_task(here.create(spec("a-1"), TEMPLATE))
    await unmaking.wait()
    here.makes = here._nothing
    await here.create(spec("b-1"), TEMPLATE)
    assert here.slot("b-1") != here.slot("a-1")
    go_on.set()
    with pytest.raises(InfrastructureError):
        await failing
    assert [runner.name for runner in here.list()] == ["b-1"]


async def test_what_could_not_be_unmade_is_listed_until_it_is(here: Here) -> None:
    here.makes, here.unmakes = fails, fails
    with pytest.raises(InfrastructureError):
        await here.create(spec("a-1"), TEMPLATE)
    assert [runner.name for runner in here.list()] == ["a-1"]
    here.unmakes = here._nothing
    await here.destroy("a-1")
    assert here.list() == ()
    await here.destroy("a-1")


async def test_what_could_not_be_unmade_is_no_runner_to_a_second_create(here: Here) -> None:
    here.makes, here.unmakes = fails, fails
    for _ in range(2):
        with pytest.raises(InfrastructureError):
            await here.create(spec("a-1"), TEMPLATE)
    here.makes, here.unmakes = here._nothing, here._nothing
    assert (await here.create(spec("a-1"), TEMPLATE)).ready


async def test_a_vm_that_the_subnet_has_no_room_for_leaves_nothing(
    tmp_path: Path, here: Here
) -> None:
    network = Network(subnet="198.18.0.0/30")
    here._config = Config(state=tmp_path, network=network)
    await here.create(spec("a-1"), TEMPLATE)
    with pytest.raises(InfrastructureError, match="has no room"):
        await here.create(spec("b-1"), TEMPLATE)
    assert [runner.name for runner in here.list()] == ["a-1"]
    await here.destroy("a-1")
    await here.create(spec("b-1"), TEMPLATE)


async def test_a_silent_qemu_holds_up_its_own_growth_only_for_a_while(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def silent(path: Path) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    await here.create(spec("a-1"), TEMPLATE)
    monkeypatch.setattr(module, "monitor", silent)
    monkeypatch.setattr(module, "GROW_S", 0.2)
    growing = asyncio.create_task(here.grow("a-1", 2 * GIB))
    await asyncio.sleep(0)
    await asyncio.wait_for(here.destroy("a-1"), 5)
    with pytest.raises(InfrastructureError, match=r"does not answer within 0\.2 s"):
        await growing


async def test_a_destroy_ends_a_create_that_is_under_way(here: Here) -> None:
    making = asyncio.Event()

    async def for_ever(_: Record) -> None:
        making.set()
        await asyncio.Event().wait()

    here.makes = for_ever
    creating = asyncio.create_task(here.create(spec("a-1"), TEMPLATE))
    await making.wait()
    await asyncio.wait_for(here.destroy("a-1"), 5)
    with pytest.raises(InfrastructureError, match="destroyed"):
        await creating
    assert here.list() == ()


async def test_making_a_runner_has_an_end(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(_: Record) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "START_S", 0.05)
    here.makes = for_ever
    with pytest.raises(InfrastructureError, match="no runner within"):
        await here.create(spec("a-1"), TEMPLATE)
    assert here.list() == ()


@pytest.mark.parametrize("name", ["", "../x-1", "a", "a-1/..", "A-1", "a-1\n"])
async def test_what_is_no_runners_name_reaches_no_path(here: Here, name: str) -> None:
    with pytest.raises(UsageError):
        await here.create(spec(name), TEMPLATE)
    await here.destroy(name)
    with pytest.raises(NotFound):
        await here.dial(name)


async def test_a_restart_adopts_what_lives_and_unmakes_the_rest_for_a_stated_reason(
    here: Here, tmp_path: Path
) -> None:
    lives = ProcessId.of(os.getpid())
    for record in (
        Record("lives-1", 0, "t1", "k", lives, ready=True, ssh_host_key="ssh-ed25519 A"),
        Record("half-1", 1, "t1", "k", lives),
        Record("dead-1", 2, "t1", "k", replace(lives, start_time=1), ready=True),
    ):
        directory = tmp_path / "vms" / record.name
        directory.mkdir(parents=True)
        write_record(directory, record)
    (tmp_path / "vms/broken-1").mkdir()
    with structlog.testing.capture_logs() as lines:
        await here.adopt()
    assert {line["runner"]: line.get("reason", "adopted") for line in lines} == {
        "lives-1": "adopted",
        "half-1": "it was being made when the host program ended",
        "dead-1": "its QEMU has ended",
        "broken-1": "it has no record that can be read",
    }
    assert [runner.name for runner in here.list()] == ["lives-1"]
    assert [path.name for path in (tmp_path / "vms").iterdir()] == ["lives-1"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", '{"process": 1}', "null"])
def test_a_record_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "vm.json").write_text(text)
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    "timings",
    [
        *(None, [], {"a b": 1}, {"\n": 1}, {"y" * 21: 1}),
        *({"x": v} for v in ("1", float("nan"), float("inf"), 10**400, -1)),
    ],
)
def test_a_guests_times_are_numbers_or_nothing(timings: Any) -> None:
    assert guest_timings({"timings_s": timings}) == {}
    more = {"timings_s": {f"k{'a' * n}": 0.5 for n in range(99)}}
    assert 0 < len(guest_timings(more)) <= 16


def test_a_record_of_another_vm_is_none(tmp_path: Path) -> None:
    write_record(tmp_path, Record("other-1", 0, "t1", "k"))
    assert read_record(tmp_path) is None


async def test_a_vm_that_was_ended_at_its_time_is_listed_with_its_reason(
    here: Here, tmp_path: Path
) -> None:
    gone = replace(ProcessId.of(os.getpid()), start_time=1)
    record = Record("over-1", 0, "t1", "k", gone, ready=True, ready_at_s=1, ends_at_s=2)
    (tmp_path / "vms/over-1").mkdir(parents=True)
    write_record(tmp_path / "vms/over-1", record)
    await here.adopt()
    (runner,) = here.list()
    assert (runner.ended, runner.ready) == (Outcome.BUDGET_EXCEEDED, False)
    with pytest.raises(NotFound):
        await here.dial("over-1")

    after = Here(tmp_path)
    await after.adopt()
    assert [runner.ended for runner in after.list()] == [Outcome.BUDGET_EXCEEDED]
    await after.destroy("over-1")
    assert after.list() == ()
    assert not (tmp_path / "vms/over-1").exists()


async def test_a_vm_that_dies_at_its_time_has_used_up_its_budget(here: Here) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    here.process, here.ends_at_s = ProcessId.of(child.pid), 1.0
    await here.create(spec("a-1"), TEMPLATE)
    child.kill()
    await until(lambda: [runner.ended for runner in here.list()] == [Outcome.BUDGET_EXCEEDED])
    await here.destroy("a-1")
    assert here.list() == ()


async def test_a_vm_that_dies_before_its_time_is_not_listed_any_more(here: Here) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    here.process = ProcessId.of(child.pid)
    await here.create(spec("a-1"), TEMPLATE)
    child.kill()
    await until(lambda: not here.list())
    await here.conclude("a-1", Outcome.DISK_FULL)
    assert here.list() == ()


async def test_what_the_host_ends_is_listed_until_it_is_destroyed(here: Here) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    here.process = ProcessId.of(child.pid)
    await here.create(spec("a-1"), TEMPLATE)
    await here.conclude("a-1", Outcome.DISK_FULL)
    child.kill()
    await child.wait()
    await asyncio.sleep(0.1)
    assert [(r.ended, r.ready) for r in here.list()] == [(Outcome.DISK_FULL, False)]
    await here.destroy("a-1")
    assert here.list() == ()


GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'
HOSTILE = {
    "says nothing": (b"", False),
    "greets and says nothing": (GREETING, False),
    "talks without end": (GREETING + b'{"event": "X", "timestamp": {}}\n', True),
    "has no line's end": (b"x" * 65536, True),
    "is deep": (b"[" * 65536 + b"\n", True),
    "is no greeting": (b'{"return": 1}\n', True),
}


@pytest.mark.parametrize("how", HOSTILE)
async def test_a_qemu_that_was_broken_out_of_holds_nobody_up(
    here: Here, tmp_path: Path, how: str
) -> None:
    says, repeats = HOSTILE[how]

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(says)
            while repeats:
                writer.write(says.removeprefix(GREETING) or says)
                await writer.drain()

    await here.create(spec("a-1"), TEMPLATE)
    (tmp_path / "vms/a-1/qemu").mkdir()
    server = await asyncio.start_unix_server(serve, tmp_path / "vms/a-1/qemu/qmp.sock")
    started = resident_bytes()
    await asyncio.wait_for(here.relieve(), 20)
    assert resident_bytes() - started < 100 * MIB
    assert [runner.ended for runner in here.list()] == [None]
    server.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_what_a_runner_used_is_known_until_it_is_destroyed(here: Here) -> None:
    """The guest does not answer here, which keeps nobody from anything."""
    assert await here.usage("a-1", final=False) is None
    await here.create(spec("a-1"), TEMPLATE)
    evidence = await here.usage("a-1", final=True)
    assert evidence is not None and evidence.usage.samples == 0
    assert here.list()[0].load is None
    await here.conclude("a-1", Outcome.BUDGET_EXCEEDED)
    assert await here.usage("a-1", final=True) == evidence
    await here.destroy("a-1")
    assert await here.usage("a-1", final=False) is None


async def test_an_adopted_runner_is_sampled_again(here: Here, tmp_path: Path) -> None:
    await here.create(spec("a-1"), TEMPLATE)
    after = Here(tmp_path)
    await after.adopt()
    assert await after.usage("a-1", final=False) is not None
    await after.destroy("a-1")
    await here.destroy("a-1")


# A runner that goes on with another's scratch disk.


class Guest:
    """The agent of a runner that is to let its disk go."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer, self.asked = answer, list[str]()
        self.load = None
        self.channel: Any = self

    async def call(self, op: str, arguments: object = None, *, timeout_s: float) -> dict[str, Any]:
        self.asked.append(op)
        if not self.answer:
            raise InfrastructureError("the guest's agent did not answer")
        return self.answer

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
async def first(here: Here, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Guest]:
    """Makes runner a-1, with that answer of its agent; ending its QEMU is noted."""
    here.ended = []  # type: ignore[attr-defined]

    async def note(process: ProcessId) -> None:
        here.ended.append(process)  # type: ignore[attr-defined]

    monkeypatch.setattr(handover, "end_with_child", note)
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    await here.create(spec("a-1"), TEMPLATE)
    qemu = here._directory("a-1") / "qemu"
    qemu.mkdir()
    (qemu / "scratch.qcow2").write_text("finished steps")

    async def folder(record: Record) -> None:
        (here._directory(record.name) / "qemu").mkdir()

    here.makes = folder

    def put(answer: dict[str, Any]) -> Guest:
        guest = Guest(answer)
        _, task = here._sampling._running["a-1"]
        here._sampling._running["a-1"] = guest, task  # type: ignore[assignment]
        return guest

    return put


def takes(
    here: Here, monkeypatch: pytest.MonkeyPatch, fault: InfrastructureError | None = None
) -> None:
    """The guest of the next runner takes the disk up, or fails to."""

    async def take(*_: object) -> dict[str, float]:
        if fault:
            raise fault
        return {"scratch": 1.5}

    monkeypatch.setattr(handover, "take_up", take)


NEXT = replace(spec("a-2"), scratch_of="a-1")


async def test_the_next_runner_has_the_disk_of_the_one_before(
    here: Here, first: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = first({"quiesced": True})
    takes(here, monkeypatch)
    made = await here.create(NEXT, TEMPLATE)
    assert (made.cold, made.timings_s["scratch"]) == ("", 1.5)
    assert made.timings_s["quiesce"] >= 0
    assert guest.asked == ["quiesce"]
    assert here.ended == [here.process]  # type: ignore[attr-defined]
    moved = here._directory("a-2") / "qemu" / handover.EARLIER
    assert moved.read_text() == "finished steps"
    assert not (here._directory("a-1") / "qemu/scratch.qcow2").exists()


@pytest.mark.parametrize("answer", [{}, {"ok": True}], ids=["silent", "anothers answer"])
async def test_a_disk_that_may_be_damaged_is_not_used(
    here: Here, first: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]
) -> None:
    first(answer)
    takes(here, monkeypatch)
    made = await here.create(NEXT, TEMPLATE)
    assert made.ready and made.cold and "scratch" not in made.timings_s
    assert not (here._directory("a-2") / "qemu" / handover.EARLIER).exists()
    assert here.ended == [here.process]  # type: ignore[attr-defined]


async def test_a_disk_of_another_template_is_not_used(
    here: Here, first: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = first({"quiesced": True})
    takes(here, monkeypatch)
    made = await here.create(NEXT, type("T", (), {"key": "other"})())
    assert "new golden image" in made.cold and guest.asked == []


async def test_a_disk_that_is_known_to_be_damaged_is_not_even_put_down(
    here: Here, first: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = first({"quiesced": True})
    takes(here, monkeypatch)
    made = await here.create(replace(NEXT, spoiled="it has holes"), TEMPLATE)
    assert (made.cold, guest.asked) == ("it has holes", [])
    assert here.ended == [here.process]  # type: ignore[attr-defined]


async def test_a_disk_goes_on_to_a_third(
    here: Here, first: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    first({"quiesced": True})
    takes(here, monkeypatch)
    await here.create(NEXT, TEMPLATE)
    _, task = here._sampling._running["a-2"]
    here._sampling._running["a-2"] = Guest({"quiesced": True}), task  # type: ignore[assignment]
    made = await here.create(replace(spec("a-3"), scratch_of="a-2"), TEMPLATE)
    assert made.cold == ""
    moved = here._directory("a-3") / "qemu" / handover.EARLIER
    assert moved.read_text() == "finished steps"


async def test_a_runner_that_has_ended_leaves_no_disk(here: Here) -> None:
    made = await here.create(NEXT, TEMPLATE)
    assert made.ready and made.cold == "runner a-1 had ended"


async def test_what_does_not_take_the_disk_up_is_made_anew_without(
    here: Here, first: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    first({"quiesced": True})
    takes(here, monkeypatch, InfrastructureError("BuildKit does not come up on it"))
    unmade = list[str]()

    async def note(runner: str) -> None:
        unmade.append(runner)

    here.unmakes = note
    made = await here.create(NEXT, TEMPLATE)
    assert made.ready and made.cold == "BuildKit does not come up on it"
    assert unmade == ["a-2"]
    assert here.ended == [here.process]  # type: ignore[attr-defined]
    assert not (here._directory("a-2") / "qemu" / handover.EARLIER).exists()
    assert read_record(here._directory("a-2")) == here._records["a-2"]


async def test_a_clone_whose_disk_never_comes_is_used_as_it_is(
    here: Here, first: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    first({})
    takes(here, monkeypatch)
    cloned, unmade = asyncio.Event(), list[str]()

    async def makes(_: Record) -> None:
        cloned.set()

    async def let_go(*_: object) -> None:
        await cloned.wait()
        raise InfrastructureError("a process holds it")

    async def note(runner: str) -> None:
        unmade.append(runner)

    monkeypatch.setattr(handover, "let_go", let_go)
    here.makes, here.unmakes = makes, note
    made = await here.create(NEXT, TEMPLATE)
    assert made.ready and made.cold == "a process holds it" and unmade == []


async def test_a_runner_that_is_not_made_leaves_the_one_before_to_whoever_tries_again(
    here: Here, first: Callable[..., Guest]
) -> None:
    first({"quiesced": True})
    here.makes = fails
    with pytest.raises(InfrastructureError, match="no"):
        await here.create(NEXT, TEMPLATE)
    assert [runner.name for runner in here.list()] == ["a-1"]
