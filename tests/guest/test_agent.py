"""The agent without a VM: framing that nothing kills, and identities into a root of our own."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.guest import buildkit, framing, machine, pair
from mayfly.guest.agent import Agent
from mayfly.guest.framing import Lines
from mayfly.guest.identity import IDENTIFIED, STANDBY_S, prepare
from mayfly.guest.kernel import Kernel, Sshd, says
from mayfly.guest.message import Refused

BOOT_ID = "5a1f0a2e-0c3c-4f0e-9d8b-6a1b2c3d4e5f"
KALLSYMS = """\
ffffffff9c000000 T _text
ffffffff9e400000 B __bss_start
ffffffff9e4a1b20 b sysctl_bootid
ffffffffc0401000 t helper\t[virtio_net]
"""
IOMEM = """\
00100000-3ffdcfff : System RAM
  2d000000-2e1fffff : Kernel code
  2f400000-2fbfffff : Kernel bss
"""
PEM = "-----BEGIN {0}-----\nQUJD\nREVG\n-----END {0}-----\n"


class Acts:
    """A kernel that only remembers what it was asked."""

    def __init__(self) -> None:
        self.done: list[tuple[str, object]] = []

    def kernel(self) -> Kernel:
        def note(name: str):  # type: ignore[no-untyped-def]
            return lambda *args: self.done.append((name, args))

        return Kernel(
            add_entropy=note("entropy"),
            set_clock_ns=note("clock"),
            set_hostname=note("hostname"),
            stay_in_memory=note("stay"),
            bind_mount=note("bind"),
            mount=note("mount"),
            unmount=note("unmount"),
            terminate=note("terminate"),
            rest=note("rest"),
            start_sshd=self.start_sshd,
            resize_filesystem=note("resize"),
            run=note("run"),
            power_off=note("poweroff"),
        )

    def start_sshd(self) -> Sshd:
        """A server that listens once it has its keys; `login` is a login's."""
        self.done.append(("sshd", ()))
        keys, tell = os.pipe()
        hear, said = os.pipe()

        def sshd() -> None:
            with os.fdopen(keys) as lines:
                self.done.append(("keys", json.loads(lines.readline())))

        self.sshd = threading.Thread(target=sshd, daemon=True)
        self.sshd.start()
        self.said = said
        return Sshd(tell, hear)

    def login(self) -> None:
        """Somebody logs in."""
        os.write(self.said, b"login\n")

    def names(self) -> list[str]:
        return [name for name, _ in self.done]


def identity(**changed: object) -> dict[str, object]:
    return {
        "id": 7,
        "op": "identity",
        "entropy_b64": base64.b64encode(bytes(64)).decode(),
        "unix_time_ns": 1_800_000_000 * 10**9,
        "machine_id": "0123456789abcdef" * 2,
        "hostname": "lease-1",
        "ssh_host_key": PEM.format("OPENSSH PRIVATE KEY"),
        "authorized_key": "ssh-ed25519 AAAA lease",
        "deadline_unix_s": 1_800_000_600,
        "cpus": 2,
        "disk_bytes": 1 << 34,
        "resolvers": ["192.0.2.53"],
        **changed,
    }


def buildkitd(root: Path, unit: str) -> None:
    """A BuildKit of that unit, as process 8; it waits for its configuration."""
    pair.group(unit, root).mkdir(parents=True, exist_ok=True)
    (pair.group(unit, root) / "cgroup.procs").write_text("7\n8\n")
    for pid, name, where in (("7", "rootlesskit\n", "0"), ("8", "buildkitd\n", "fifo_open")):
        (root / "proc" / pid / "task" / pid).mkdir(parents=True)
        (root / "proc" / pid / "comm").write_text(name)
        (root / "proc" / pid / "task" / pid / "wchan").write_text(where)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("etc", "run/mayfly", "proc/sys/kernel/random", "proc/self"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/machine-id").write_text("template\n")
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text(BOOT_ID + "\n")
    (tmp_path / "proc/kallsyms").write_text(KALLSYMS)
    (tmp_path / "proc/iomem").write_text(IOMEM)
    (tmp_path / "proc/self/oom_score_adj").write_text("0")
    for block, state in (("memory0", "online\n"), ("memory9", "offline\n")):
        (tmp_path / machine.MEMORY / block).mkdir(parents=True)
        (tmp_path / machine.MEMORY / block / "state").write_text(state)
    buildkitd(tmp_path, pair.STANDBY)
    (tmp_path / pair.PIPE).parent.mkdir()
    return tmp_path


# --- framing ---------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=30))
def test_lines_come_out_whole_however_they_are_cut(pieces: list[bytes]) -> None:
    reader = Lines(limit=100)
    got = [line for piece in pieces for line in reader.feed(piece)]
    expected = [line if len(line) <= 100 else None for line in b"".join(pieces).split(b"\n")[:-1]]
    rest = b"".join(pieces).split(b"\n")[-1]
    assert got == expected + ([None] if len(rest) > 100 else [])


def test_a_line_without_end_takes_no_memory() -> None:
    reader = Lines(limit=100)
    for _ in range(1000):
        list(reader.feed(b"x" * 100))
    assert len(reader._buffer) <= 200


@given(st.binary(max_size=400))
def test_no_line_makes_the_agent_raise(line: bytes) -> None:
    answer = Agent(Acts().kernel()).handle(line)
    assert answer is None or answer["ok"] is False


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(["identity", "freeze", "wait_buildkit", "x"]), json_values, json_values)
def test_no_value_makes_the_agent_raise_or_act(op: str, value: object, other: object) -> None:
    acts = Acts()
    waits = isinstance(value, int | float) and 0 < value <= 3600  # it would: for so many seconds
    message = {**identity(), "op": op, "timeout_s": 0 if waits else value, "online_cpus": "2"}
    message["hostname"] = other if other != "lease-1" else 1
    message["machine_id"] = value
    answer = Agent(acts.kernel()).handle(json.dumps(message).encode())
    assert answer is not None
    if op != "wait_buildkit":
        assert answer["ok"] is False
    assert "\n" not in str(answer.get("error", ""))
    assert acts.done == []


def test_deep_nesting_is_refused() -> None:
    answer = Agent(Acts().kernel()).handle(b"[" * 60000)
    assert answer is not None and answer["ok"] is False


@contextmanager
def served() -> Iterator[socket.socket]:
    host, guest = socket.socketpair()
    host.settimeout(10)
    thread = threading.Thread(
        target=framing.serve, args=(Agent(Acts().kernel()), guest.fileno()), daemon=True
    )
    thread.start()
    try:
        yield host
        assert thread.is_alive()
    finally:
        host.close()
        guest.detach()


def ask(host: socket.socket, number: int) -> dict[str, object]:
    host.sendall(b"\n" + json.dumps({"id": number, "op": "hello"}).encode() + b"\n")
    received = b""
    while True:
        received += host.recv(65536)
        for line in received.split(b"\n")[:-1]:
            answer: dict[str, object] = json.loads(line)
            if answer["id"] == number:
                return answer


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=2000), max_size=10))
def test_after_any_bytes_the_next_request_is_answered(noise: list[bytes]) -> None:
    with served() as host:
        for piece in noise:
            host.sendall(piece)
        assert ask(host, 987654321)["ok"] is True


def test_after_an_endless_line_the_next_request_is_answered() -> None:
    with served() as host:
        for _ in range(40):
            host.sendall(b"y" * 65536)
        assert ask(host, 4)["ok"] is True


def test_a_host_may_come_back(tmp_path: Path) -> None:
    """A FIFO pair is as near as a port without a VM comes: end of file, then a new writer."""
    inward = tmp_path / "in"
    os.mkfifo(inward)
    fd = os.open(inward, os.O_RDONLY | os.O_NONBLOCK)
    agent_seen: list[bytes | None] = []

    class Listening(Agent):
        def handle(self, line: bytes | None) -> None:
            agent_seen.append(line)

    threading.Thread(
        target=framing.serve, args=(Listening(Acts().kernel()), fd), daemon=True
    ).start()
    for text in (b"half a li", b'\n{"id": 1}\n', b"\n{}\n"):
        with inward.open("wb", buffering=0) as writer:
            writer.write(text)
        for _ in range(3000):
            if len(agent_seen) >= 2 * (text != b"half a li"):
                break
            threading.Event().wait(0.01)
    for _ in range(3000):
        if b"{}" in agent_seen:
            break
        threading.Event().wait(0.01)
    assert b'{"id": 1}' in agent_seen and b"{}" in agent_seen


def test_send_gives_up_on_a_host_that_does_not_read() -> None:
    host, guest = socket.socketpair()
    with host, guest:
        guest.setblocking(False)
        assert framing.send(guest.fileno(), b"z" * (1 << 22), timeout_s=0.2) is False


# --- identity --------------------------------------------------------------------------------


def test_identity_is_written_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "set_cpus", lambda *_: None)
    acts = Acts()
    prepare(root, acts.kernel())
    guest = Agent(acts.kernel(), root)
    answer = guest.handle(json.dumps(identity()).encode())
    assert answer is not None and answer["ok"] is True, answer
    assert set(answer["timings_s"]) == {"message", "entropy", "clock", "keys", "names"}

    own = root / "run/mayfly"
    assert (own / "machine-id").read_text() == "0123456789abcdef" * 2 + "\n"
    acts.sshd.join(30)
    keys = {
        "host_key": PEM.format("OPENSSH PRIVATE KEY"),
        "authorized_key": "ssh-ed25519 AAAA lease",
    }
    assert ("keys", keys) in acts.done
    assert not any("PRIVATE KEY" in file.read_text() for file in own.rglob("*") if file.is_file())
    # Nothing is random before the entropy.
    names = acts.names()
    assert names.index("entropy") < names.index("clock") < names.index("keys")

    again = guest.handle(json.dumps(identity(id=8)).encode())
    assert again == {"id": 8, "ok": False, "error": "identity: this guest has one already"}


def test_the_boot_id_is_where_the_kernel_says(root: Path) -> None:
    assert machine.boot_id(root) == {"address": 0x2F400000 + 0xA1B20, "value": BOOT_ID}


@pytest.mark.parametrize("name", ["__bss_start", "sysctl_bootid", "Kernel bss"])
def test_a_kernel_that_hides_its_boot_id_cannot_be_frozen(root: Path, name: str) -> None:
    for file in (root / "proc/kallsyms", root / "proc/iomem"):
        file.write_text(file.read_text().replace(name, "other"))
    with pytest.raises(Refused, match="boot id"):
        machine.boot_id(root)


def test_prepare_twice_mounts_once(root: Path) -> None:
    acts = Acts()
    prepare(root, acts.kernel())
    prepare(root, acts.kernel())
    assert acts.names() == ["bind"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("machine_id", "0" * 31),
        ("machine_id", "g" * 32),
        ("hostname", "a b"),
        ("hostname", "../x"),
        ("authorized_key", "ssh-ed25519 A\ncommand=x ssh-rsa B"),
        ("ssh_host_key", "no pem"),
        ("entropy_b64", "AA=="),
        ("entropy_b64", "A" * 43),
        ("entropy_b64", "!" * 64),
        ("hostname", "-x"),
        ("hostname", "x" * 64),
        ("hostname", ""),
        ("ssh_host_key", ""),
        ("entropy_b64", None),
        ("cpus", 0),
        ("cpus", True),
        ("disk_bytes", -1),
        ("unix_time_ns", float("nan")),
        ("deadline_unix_s", "soon"),
        ("resolvers", []),
        ("resolvers", ["192.0.2.53", "evil\noptions"]),
    ],
)
def test_a_malformed_identity_is_refused_by_name(root: Path, field: str, value: object) -> None:
    acts = Acts()
    answer = Agent(acts.kernel(), root).handle(json.dumps(identity(**{field: value})).encode())
    assert answer is not None and answer["ok"] is False
    assert field in answer["error"]
    assert acts.done == []


def test_a_guest_settles_when_somebody_has_logged_in(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "set_cpus", lambda *_: None)
    acts = Acts()
    prepare(root, acts.kernel())
    guest = Agent(acts.kernel(), root)
    guest.handle(json.dumps(identity()).encode())
    guest.after_reply()
    threading.Event().wait(0.1)
    assert "resize" not in acts.names()
    assert (root / machine.MEMORY / "memory9/state").read_text() == "offline\n"
    acts.login()
    killed = pair.group(pair.STANDBY, root) / "cgroup.kill"
    for _ in range(500):
        if killed.exists():
            break
        threading.Event().wait(0.01)
    else:
        pytest.fail("it did not settle")
    assert "resize" in acts.names()
    assert (root / machine.MEMORY / "auto_online_blocks").read_text() == "online"
    assert (root / machine.MEMORY / "memory9/state").read_text() == "online"
    assert (root / machine.MEMORY / "memory0/state").read_text() == "online\n", "it was there"


def test_a_frozen_guest_knows_its_registry_and_nothing_of_its_own(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "set_cpus", lambda *_: None)
    monkeypatch.setattr(buildkit, "answers", lambda timeout_s: True)
    acts = Acts()
    prepare(root, acts.kernel())
    guest = Agent(acts.kernel(), root)
    freeze = {"id": 1, "op": "freeze", "online_cpus": 2, "registry_ca_pem": PEM.format("X")}
    answer = guest.handle(json.dumps(freeze).encode())
    assert answer == {"id": 1, "ok": True, "boot_id": machine.boot_id(root)}
    assert (root / "run/mayfly/registry-ca.pem").read_text() == PEM.format("X")
    assert acts.names() == ["bind", "run", "sshd", "rest"]
    assert acts.done[1][1] == (("systemctl", "start", pair.STANDBY), STANDBY_S)
    assert (root / machine.MEMORY / "auto_online_blocks").read_text() == "offline"
    guest.handle(json.dumps(identity()).encode())
    assert acts.names().count("sshd") == 1, "the server that waited got the keys"
    refused = guest.handle(json.dumps(freeze | {"registry_ca_pem": "x"}).encode())
    assert refused is not None and refused["ok"] is False


def test_freeze_after_identity_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts = Acts()
    prepare(root, acts.kernel())
    guest = Agent(acts.kernel(), root)
    guest.handle(json.dumps(identity()).encode())
    answer = guest.handle(b'{"id": 1, "op": "freeze", "online_cpus": 1}')
    assert answer is not None and answer["ok"] is False


def test_power_off_comes_after_the_answer() -> None:
    acts = Acts()
    guest = Agent(acts.kernel())
    assert guest.handle(b'{"id": 1, "op": "poweroff"}') == {"id": 1, "ok": True}
    assert acts.done == []
    guest.after_reply()
    assert acts.names() == ["poweroff"]


def test_a_deadline_that_has_passed_powers_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "set_cpus", lambda *_: None)
    acts = Acts()
    prepare(root, acts.kernel())
    guest = Agent(acts.kernel(), root)
    guest.handle(json.dumps(identity(deadline_unix_s=0)).encode())
    guest.after_reply()
    for _ in range(500):
        if "poweroff" in acts.names():
            return
        threading.Event().wait(0.01)
    pytest.fail("the deadline did nothing")


# --- processors -----------------------------------------------------------------


def test_cpus_are_switched_in_number_order(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"cpu{number}").mkdir()
        if number:
            (tmp_path / f"cpu{number}/online").write_text("1\n")
    (tmp_path / "cpufreq").mkdir()
    machine.set_cpus(3, tmp_path)
    states = [(tmp_path / f"cpu{n}/online").read_text().strip() for n in range(1, 12)]
    assert states == ["1", "1"] + ["0"] * 9


def test_a_line_is_heard_whole_and_in_time() -> None:
    hear, said = os.pipe()
    os.write(said, b"listening\nlog")
    assert says(hear, b"listening", 1)
    assert not says(hear, b"login", 0.01)
    os.write(said, b"in\n")
    assert not says(hear, b"login", 1), "what came before is gone"
    os.close(said)
    assert not says(hear, b"login", 1)


def test_an_agent_that_was_restarted_gives_no_second_identity(root: Path) -> None:
    (root / IDENTIFIED).touch()
    answer = Agent(Acts().kernel(), root).handle(json.dumps(identity()).encode())
    assert answer is not None and answer["ok"] is False
    assert "one already" in answer["error"]


def authorize(guest: Agent, key: object = "ssh-ed25519 BBBB other") -> dict[str, object]:
    answer = guest.handle(json.dumps({"id": 8, "op": "authorize", "authorized_key": key}).encode())
    assert answer is not None
    return answer


def test_one_more_key_goes_to_the_server_once_there_is_an_identity(root: Path) -> None:
    acts = Acts()
    prepare(root, acts.kernel())
    guest = Agent(acts.kernel(), root)
    assert "no sshd" in str(authorize(guest)["error"])
    keys, tell = os.pipe()
    guest._life._sshd = Sshd(tell, os.pipe()[0])
    assert "no sshd" in str(authorize(guest)["error"]), "it is nobody's yet"
    guest.handle(json.dumps(identity()).encode())
    for wrong in ("two\nlines", "", 7, None, "x" * 20000):
        assert "authorized_key" in str(authorize(guest, wrong)["error"])
    assert authorize(guest)["ok"] is True
    with os.fdopen(keys) as lines:
        told = [json.loads(lines.readline()) for _ in range(2)]
    assert told[1] == {"authorized_key": "ssh-ed25519 BBBB other"}
    assert told[0]["authorized_key"] == "ssh-ed25519 AAAA lease"
    assert "takes no key" in str(authorize(guest)["error"]), "its reader has gone"


def test_a_server_that_does_not_read_holds_nobody_up(root: Path) -> None:
    acts = Acts()
    prepare(root, acts.kernel())
    guest = Agent(acts.kernel(), root)
    keys, tell = os.pipe()
    guest._life._sshd = Sshd(tell, os.pipe()[0])
    guest.handle(json.dumps(identity()).encode())
    answers = [authorize(guest, "k" * 16000)["ok"] for _ in range(8)]
    assert answers[0] is True and answers[-1] is False
    os.close(keys)
