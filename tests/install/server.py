"""What is done on the server that `test_systemd.py` boots: run there by its own Python, as root.

Every step prints a line of JSON, `{"step": …, "fault": …}`; nothing of Mayfly or of the tests is
imported. The server has no network but loopback, and the provider is `fake`.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import stat
import subprocess
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIVEN = "/opt/mayfly/bin/mayfly"
INSTALLED = "/usr/local/bin/mayfly"
STATE = Path("/var/lib/mayfly")
CODE = Path("/usr/local/lib/mayfly")
URL = "https://registry.mayfly.internal:5000"
USERS = {
    "s3": 60904,
    "registry": 60903,
    "host": 0,
    "edge": 60902,
    "orchestrator": 60901,
    "builders": 60905,
    "look": 0,
}
"""Every program that stays, and whom it runs as (mayfly/users.py)."""

# What a running system writes by itself.
OTHERS = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/log", "/var/tmp", "/var/lib/systemd")

Snapshot = dict[str, tuple[object, ...]]


def snapshot() -> Snapshot:
    found: Snapshot = {}
    for folder, folders, files in os.walk("/"):
        inside = Path(folder)
        folders[:] = [name for name in folders if str(inside / name) not in OTHERS]
        for name in [*folders, *files]:
            path = inside / name
            at = path.lstat()
            entry: tuple[object, ...] = (stat.filemode(at.st_mode), at.st_uid, at.st_gid)
            if stat.S_ISLNK(at.st_mode):
                entry += (str(path.readlink()),)
            elif stat.S_ISREG(at.st_mode):
                entry += (at.st_size,)
                if path.is_relative_to("/etc"):
                    entry += (hashlib.sha256(path.read_bytes()).hexdigest(),)
                else:
                    entry += (at.st_mtime_ns,)
            found[str(path)] = entry
    return found


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    paths = sorted(before.keys() | after.keys())
    return [p for p in paths if before.get(p) != after.get(p)]


def run(*argv: str, status: int = 0) -> str:
    # Nothing of the given environment is to be changed by being run.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    said = (done.stdout + done.stderr).strip()
    assert done.returncode == status, f"{argv[:3]} ended with {done.returncode}: {said[-1500:]}"
    return said


def pids() -> dict[str, str]:
    return {
        name: run("systemctl", "show", "-p", "MainPID", "--value", f"mayfly-{name}.service")
        for name in USERS
    }


def ask(method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Any:
    token = (STATE / "admin.token").read_text().strip()
    request = urllib.request.Request(  # noqa: S310 - ours
        URL + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            **(headers or {}),
        },
    )
    trusted = ssl.create_default_context(cafile=str(STATE / "ca/ca.crt"))
    with urllib.request.urlopen(request, context=trusted, timeout=30) as answer:  # noqa: S310
        text = answer.read()
    return json.loads(text) if text else None


class Beating(threading.Thread):
    """The heartbeats of a lease's client, which asks again when the farm is away for a moment."""

    def __init__(self, lease: str) -> None:
        super().__init__(daemon=True)
        self.path = f"/v1/leases/{lease}/heartbeat"
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(2):
            try:
                ask("POST", self.path)
            except OSError:
                continue


def eventually(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.5)


class Story:
    """The steps, in order."""

    def __init__(self) -> None:
        self.before = snapshot()
        self.pids: dict[str, str] = {}
        self.lease = ""
        self.beating: Beating | None = None

    def a_certificate_for_another_name_is_refused_and_nothing_is_left(self) -> None:
        said = run(
            *(GIVEN, "install", "--name", "builds.example.org"),
            *("--tls-cert", "/opt/other.crt", "--tls-key", "/opt/other.key"),
            status=21,
        )
        assert "is for other.example.org and not for builds.example.org" in said, said
        assert len(said.splitlines()) == 1, said
        assert difference(self.before, snapshot()) == []

    def a_port_that_is_taken_is_named_and_nothing_is_left(self) -> None:
        with subprocess.Popen(
            ["python3", "-m", "http.server", "--bind", "127.0.0.1", "5000"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/proc",
        ) as other:
            eventually(lambda: other.poll() is None and listens(5000))
            said = run(GIVEN, "install", status=21)
            other.terminate()
        assert "cannot listen at 127.0.0.1:5000" in said, said
        assert difference(self.before, snapshot()) == []

    def it_is_installed_and_serves(self) -> None:
        said = run(GIVEN, "install")
        assert "\ninstalled\n" in f"\n{said}\n", said
        assert f"{URL}/v1/woodpecker/secrets" in said
        assert ask("GET", "/healthz") is not None
        assert run(INSTALLED, "status").startswith("Mayfly ")
        self.pids = pids()
        assert "0" not in self.pids.values(), self.pids

    def its_programs_have_the_users_they_are_meant_for(self) -> None:
        owners = {n: Path(f"/proc/{pid}").stat().st_uid for n, pid in self.pids.items()}
        assert owners == USERS

    def it_yields_to_what_else_runs(self) -> None:
        group = Path("/sys/fs/cgroup/mayfly.slice")
        assert (group / "cpu.weight").read_text().strip() == "50"
        assert list(group.glob("mayfly-orchestrator.service"))
        (builds,) = Path("/sys/fs/cgroup").glob("mayfly-*")
        assert (builds / "cpu.weight").read_text().strip() == "20"

    def a_second_time_changes_nothing(self) -> None:
        there = snapshot()
        said = run(GIVEN, "install")
        assert "nothing changed" in said, said
        assert pids() == self.pids
        written = [p for p in difference(there, snapshot()) if not p.startswith(str(STATE))]
        assert written == [], written

    def a_lease_is_open(self) -> None:
        key = "ssh-ed25519 " + "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
        asked = ask("POST", "/v1/leases", {"repo": "team/app", "ssh_public_key": key})
        self.lease = asked["id"]
        self.beating = Beating(self.lease)
        self.beating.start()
        path = f"/v1/leases/{self.lease}"
        eventually(lambda: ask("GET", path)["state"] == "ready")

    def an_upgrade_starts_every_program_anew_and_the_lease_goes_on(self) -> None:
        before = ask("GET", f"/v1/leases/{self.lease}")
        with given("pid.py").open("a") as module:
            module.write("# a newer version\n")
        (folder,) = CODE.iterdir()
        said = run(GIVEN, "install")
        assert "starting the new version" in said, said
        (newer,) = CODE.iterdir()
        assert newer != folder
        now = pids()
        assert all(now[name] not in ("0", self.pids[name]) for name in USERS), now
        after = ask("GET", f"/v1/leases/{self.lease}")
        assert (after["state"], after["attempt"]) == ("ready", before["attempt"]), after
        assert after["ready_at"] == before["ready_at"]
        self.pids = now

    def an_upgrade_that_does_not_come_up_is_taken_back(self) -> None:
        module = given("orchestrator/__main__.py")
        text = module.read_text()
        (folder,) = CODE.iterdir()
        module.write_text("raise SystemExit('mayfly-orchestrator: this one is broken')\n")
        said = run(GIVEN, "install", status=20)
        last = "mayfly-orchestrator.service does not start: mayfly-orchestrator: this one is broken"
        assert last in said.splitlines()[-1], said
        module.write_text(text)
        assert [*CODE.iterdir()] == [folder]
        now = pids()
        assert "0" not in now.values(), now
        assert ask("GET", f"/v1/leases/{self.lease}")["state"] == "ready"
        self.pids = now

    def a_program_that_dies_is_started_again(self) -> None:
        run("kill", "-9", self.pids["orchestrator"])
        eventually(lambda: pids()["orchestrator"] not in ("0", self.pids["orchestrator"]))
        eventually(lambda: serves(f"/v1/leases/{self.lease}"))

    def a_program_that_hangs_is_started_again(self) -> None:
        hanging = pids()["orchestrator"]
        run("kill", "-STOP", hanging)
        eventually(lambda: pids()["orchestrator"] not in ("0", hanging))
        eventually(lambda: serves(f"/v1/leases/{self.lease}"))

    def data_is_kept_where_that_is_asked_for(self) -> None:
        assert self.beating is not None
        self.beating.over.set()
        token = (STATE / "admin.token").read_text()
        run(INSTALLED, "uninstall", "--keep-data")
        left = self._left()
        assert [p for p in left if not p.startswith(str(STATE))] == [], left
        run(GIVEN, "install")
        assert (STATE / "admin.token").read_text() == token

    def nothing_is_left_of_it(self) -> None:
        run(INSTALLED, "uninstall")
        assert self._left() == []
        assert run("systemctl", "list-units", "--all", "--no-legend", "mayfly*") == ""
        assert list(Path("/sys/fs/cgroup").glob("mayfly*")) == []
        owners = set(run("ps", "-eo", "uid=").split())
        assert not owners & {str(number) for number in USERS.values() if number}, owners
        assert run(GIVEN, "uninstall") == "nothing is installed"

    def _left(self) -> list[str]:
        """What differs now from what was before, but for the versions that were made by hand."""
        by_hand = (str(given("pid.py")), str(given("orchestrator/__main__.py")))
        return [p for p in difference(self.before, snapshot()) if p not in by_hand]


def given(module: str) -> Path:
    """A module of the code that is given to be installed."""
    (found,) = Path("/opt/mayfly/lib").glob(f"python3*/site-packages/mayfly/{module}")
    return found


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


def serves(path: str) -> bool:
    try:
        return bool(ask("GET", path)["state"] == "ready")
    except OSError:
        return False


def steps() -> list[str]:
    """The names of the steps, in order."""
    return [name for name in vars(Story) if not name.startswith("_")]


def main() -> None:
    story = Story()
    for name in steps():
        step = getattr(story, name)
        began = time.monotonic()
        fault = ""
        try:
            step()
        except Exception:
            fault = traceback.format_exc()
        print(json.dumps({"step": name, "fault": fault, "s": round(time.monotonic() - began, 1)}))
        if fault:
            break
    print(json.dumps({"over": True}))


if __name__ == "__main__":
    main()
