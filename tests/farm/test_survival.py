"""Nothing that dies takes a build with it; what cannot go on ends with a stated outcome."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mayfly.build.result import AGAIN
from mayfly.pid import ProcessId
from mayfly.stack import running
from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services]

Context = Callable[[str], Path]


def after_the_loss(output: str) -> str | None:
    """What a build said after it had lost its way to the runner; None when it never did. That
    BuildKit did not begin in time, which a machine with too much to do can bring about, is no loss.
    """
    parts = re.split(f"^.* was lost: {AGAIN}$", output, flags=re.MULTILINE)
    assert len(parts) <= 2, output
    return parts[1] if len(parts) == 2 else None


@contextmanager
def building(farm: Farm, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A build whose log says that a step has printed `it begins`; it ends with the block."""
    build = farm.start(*words)

    def begun() -> bool:
        leases = farm.leases("ready")
        log = farm.mayfly("logs", leases[0]["id"]).stdout if leases else ""
        return re.search(r"^#\d+ \d+\.\d+ it begins$", log, re.MULTILINE) is not None

    try:
        farm.until(begun, 120)
        yield build
    finally:
        build.kill()
        build.communicate()


def kill(farm: Farm, *programs: str) -> None:
    """`kill -9` them all at once; returns when each has been started again."""
    pids = {program: farm.pid(program) for program in programs}
    assert all(pids.values()), pids
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    farm.until(lambda: all(farm.pid(name) not in (0, pid) for name, pid in pids.items()))


def supervisor(farm: Farm) -> int:
    status = running(farm.config)
    assert status is not None
    return status.pid


def two_steps(context: Context) -> Path:
    """A context whose first step is done when the second one is interrupted."""
    folder = context("echo the first one")
    with (folder / "Dockerfile").open("a") as file:
        file.write("RUN echo it begins; sleep 40; echo all the way\n")
    return folder


def finished(farm: Farm, build: subprocess.Popen[str], runners: list[str], told: Path) -> str:
    """What a build said that succeeded on the one VM it had from the beginning."""
    output = build.communicate(timeout=240)[1]
    assert build.returncode == 0, output
    assert "all the way" in output
    row = farm.json("status")["builds"][0]
    assert (row["outcome"], [f"{row['id']}-1"]) == ("succeeded", runners)
    assert json.loads(told.read_text())["mayfly"]["build"] == row["id"]
    return output


@pytest.mark.parametrize("program", ["orchestrator", "host"])
def test_a_build_goes_on_undisturbed_when_a_program_dies(
    farm: Farm, context: Context, program: str, tmp_path: Path
) -> None:
    folder, told = two_steps(context), tmp_path / "told.json"
    words = ("--progress=plain", "--metadata-file", told, folder)
    with building(farm, *farm.build(f"team/undisturbed-{program}", *words)) as build:
        runners = farm.vms()
        kill(farm, program)
        assert farm.vms() == runners, "adopted"
        output = finished(farm, build, runners, told)
    assert after_the_loss(output) is None
    assert json.loads(told.read_text())["mayfly"]["reconnects"] <= output.count(AGAIN)


def test_a_build_finishes_on_the_same_vm_when_the_edge_dies(
    farm: Farm, context: Context, tmp_path: Path
) -> None:
    folder, told = two_steps(context), tmp_path / "told.json"
    words = ("--progress=plain", "--metadata-file", told, folder)
    with building(farm, *farm.build("team/edge", *words)) as build:
        runners = farm.vms()
        kill(farm, "edge")
        output = finished(farm, build, runners, told)
    again = after_the_loss(output)
    assert again is not None, output
    assert re.search(r"#(\d+) \[2/3\] RUN echo the first one\n#\1 CACHED\n", again), output
    mayfly = json.loads(told.read_text())["mayfly"]
    assert 1 <= mayfly["reconnects"] <= output.count(AGAIN)
    assert mayfly["attempts"] == [{"size": "t2", "outcome": "succeeded"}]


def test_a_build_finishes_when_everything_beside_its_vm_dies(
    farm: Farm, context: Context, tmp_path: Path
) -> None:
    folder, told = two_steps(context), tmp_path / "told.json"
    words = ("--progress=plain", "--metadata-file", told, folder)
    with building(farm, *farm.build("team/everything", *words)) as build:
        runners = farm.vms()
        programs = [supervisor(farm)]
        programs += [farm.pid(n) for n in ("orchestrator", "edge", "host", "registry", "s3")]
        for pid in programs:
            os.kill(pid, signal.SIGKILL)
        farm.mayfly("up", "--detach")
        output = finished(farm, build, runners, told)
    assert after_the_loss(output) is not None, output


def test_a_client_that_was_killed_is_found_lost_and_leaves_no_process(
    farm: Farm, context: Context
) -> None:
    with building(farm, *farm.build("team/lost", context("echo it begins; sleep 600"))) as build:
        children = descendants(build.pid)
        assert children, "buildx runs"
        build.kill()
        farm.until(lambda: not farm.vms())
    row = farm.json("status")["builds"][0]
    assert (row["outcome"], row["exit_code"]) == ("client_lost", None)
    assert "no heartbeat from the client for 20 s" in row["reason"]
    farm.until(lambda: not any(child.alive() for child in children))


def test_a_runner_whose_qemu_was_killed_is_lost_and_that_is_said_at_once(
    farm: Farm, context: Context
) -> None:
    with building(farm, *farm.build("team/qemu", context("echo it begins; sleep 600"))) as build:
        (runner,) = farm.vms()
        os.kill(qemu(runner), signal.SIGKILL)
        output = build.communicate(timeout=60)[1]
        assert build.returncode == 20, output
    last = output.strip().splitlines()[-1]
    assert f"ended as runner_lost: the runner {runner} died - build again" in last
    row = farm.json("status")["builds"][0]
    assert (row["outcome"], row["exit_code"]) == ("runner_lost", None)
    assert row["reason"] == f"the runner {runner} died"
    assert "it begins" in farm.mayfly("logs", row["id"]).stdout


def test_a_registry_and_a_bucket_that_die_before_during_and_at_the_push_only_delay_a_build(
    farm: Farm, context: Context, tmp_path: Path
) -> None:
    base, host = "images/team/registry/base:1", farm.config.registry_host
    folder = context("echo a base")
    farm.mayfly(*farm.build("team/registry", "-t", base, "--push", folder))
    (folder / "Dockerfile").write_text(
        f"FROM {host}/{base}\nRUN echo it begins; sleep 10; echo all the way\n"
    )
    kill(farm, "s3", "registry")
    words = ("--progress=plain", "-t", "images/team/registry:1", "--push", folder)
    with building(farm, *farm.build("team/registry", *words)) as build:
        kill(farm, "s3", "registry")
        assert build.stderr is not None
        output = ""
        for line in build.stderr:
            output += line
            if re.match(r"#\d+ pushing layers", line):
                kill(farm, "s3", "registry")
                break
        output += build.communicate(timeout=240)[1]
        assert build.returncode == 0, output
    assert "all the way" in output
    assert "pushing layers" in output
    assert farm.json("status")["builds"][0]["outcome"] == "succeeded"


@contextmanager
def nobody_starts_again(farm: Farm) -> Iterator[None]:
    """The supervisor stands still: what dies stays dead, what hangs hangs."""
    pid = supervisor(farm)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        farm.until(lambda: farm.pid("registry") and farm.pid("s3"), 90)


def test_a_base_image_that_a_dead_registry_has_is_not_the_users_fault(
    farm: Farm, tmp_path: Path
) -> None:
    base = f"{farm.config.registry_host}/images/base/none:1"
    (tmp_path / "Dockerfile").write_text(f"FROM {base}\n")
    words = farm.build("team/no-registry", tmp_path)
    assert farm.mayfly(*words, check=False).returncode == 1, "no such image: the user's fault"
    with nobody_starts_again(farm):
        os.kill(farm.pid("registry"), signal.SIGKILL)
        done = farm.mayfly(*words, check=False)
    assert done.returncode == 20, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"{base} cannot be read: the registry or its bucket does not answer" in last
    row = farm.json("status")["builds"][0]
    assert (row["outcome"], row["exit_code"]) == ("infrastructure", 20)


@pytest.mark.long
def test_a_cache_that_can_be_neither_read_nor_written_fails_nothing(
    farm: Farm, context: Context
) -> None:
    words = farm.build("team/uncached", "--progress=plain", context("echo built"))
    with nobody_starts_again(farm):
        os.kill(farm.pid("registry"), signal.SIGKILL)
        done = farm.mayfly(*words)
    assert "exporting cache" in done.stderr
    assert farm.json("status")["builds"][0]["outcome"] == "succeeded"


@pytest.mark.long
@pytest.mark.parametrize(
    ("program", "number"),
    [
        ("registry", signal.SIGKILL),
        ("s3", signal.SIGKILL),
        ("s3", signal.SIGSTOP),
    ],
)
def test_an_image_that_cannot_be_pushed_is_not_published_and_nothing_hangs(
    farm: Farm, context: Context, program: str, number: signal.Signals
) -> None:
    """Neither the image nor the cache can be written, and nobody mends it."""
    name = f"images/team/unpushed-{program}:{number}"
    folder = context("echo built")
    with nobody_starts_again(farm):
        pid = farm.pid(program)
        os.kill(pid, number)
        began = time.monotonic()
        words = farm.build(f"team/unpushed-{program}", "-t", name, "--push", folder)
        done = farm.start(*words)
        try:
            output = done.communicate(timeout=1500)[1]
        finally:
            done.kill()
        print(f"{program} {number.name}: {time.monotonic() - began:.0f} s")
        if number is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
    assert done.returncode == 9, output
    assert "the image was built and could not be pushed" in output.strip().splitlines()[-1]
    row = farm.json("status")["builds"][0]
    assert (row["outcome"], row["exit_code"]) == ("not_published", 9)


@pytest.mark.long
@pytest.mark.parametrize("program", ["s3", "registry", "edge", "host", "orchestrator"])
def test_a_program_that_hangs_is_killed_and_the_build_succeeds(
    farm: Farm, context: Context, program: str, tmp_path: Path
) -> None:
    folder, told = two_steps(context), tmp_path / "told.json"
    name = f"images/team/hangs-{program}:1"
    words = ("--progress=plain", "--metadata-file", told, "-t", name, "--push", folder)
    with building(farm, *farm.build(f"team/hangs-{program}", *words)) as build:
        runners = farm.vms()
        pid = farm.pid(program)
        os.kill(pid, signal.SIGSTOP)
        finished(farm, build, runners, told)
    farm.until(lambda: farm.pid(program) not in (0, pid), 60)


def qemu(runner: str) -> int:
    """The process of a runner's QEMU itself, not that of the watchdog around it."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            command = (path.parent / "cmdline").read_bytes().split(b"\0")
            if path.read_text().startswith("qemu-") and f"mayfly/{runner}".encode() in command:
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError(f"no QEMU of {runner}")


def descendants(pid: int) -> list[ProcessId]:
    """The processes below one, whatever becomes of it."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [ProcessId.of(child), *descendants(child)]
    return found
