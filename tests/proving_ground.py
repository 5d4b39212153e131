"""A machine and a world of a test's own, in network namespaces: a broken rule leaks nothing.

    runner's namespace -- veth -- "the machine" (a namespace) -- veth -- "the world" (a namespace)

The world is the machine's only way out and has none itself. It is at a public address, at addresses
that a build has no business to reach, and at DNS servers; at each of them it echoes TCP, UDP and
ICMP. Everything that arrives in it is seen as a frame, whoever it says it comes from.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mayfly.host import network

PUBLIC = "203.0.113.10"
"""Where the world plays a package registry on the internet."""
REGISTRY_NAME = "packages.example"
OTHER_DNS = "203.0.113.53"
"""A DNS server on the internet, and not the machine's."""
RESOLVER = "10.9.9.53"
"""The machine's DNS server, in a private range as they are."""
ALLOWED = "10.8.8.8"
"""Private, and named in the configuration."""
FORBIDDEN = (
    *("10.9.9.9", "172.16.3.3", "192.168.7.7", "100.64.1.1", "169.254.169.254"),
    *("192.0.0.9", "198.18.7.7"),
)
FORBIDDEN_V6 = ("2001:db8:9::9", "fd12:3456::9")
MACHINES_OWN, MACHINES_OWN_V6 = "203.0.113.1", "2001:db8:1::1"
PORT = 8080

T = TypeVar("T")
Answer = Callable[[bytes], bytes]


@dataclass
class Ground:
    """The two namespaces; the threads that answer stand in them."""

    machine: str
    world: str
    seen: list[str] = field(default_factory=list)
    """What arrived in the world: `PROTOCOL SOURCE > DESTINATION[:PORT]`."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """What runs a command on "the machine"."""
        return ("nsenter", f"--net={network.NETNS / self.machine}")

    def forget(self) -> None:
        """Begin to note anew, once nothing has arrived for a while: connections take leave late."""
        while self.seen:
            self.seen.clear()
            time.sleep(1)

    def on_machine(self, work: Callable[[], T]) -> T:
        """Do `work` on a thread that stands on "the machine"."""
        return in_namespace(self.machine, work)


def sh(*argv: str | Path, stdin: str = "") -> str:
    done = subprocess.run(argv, check=True, input=stdin, capture_output=True, text=True, timeout=20)
    return done.stdout


def in_namespace(name: str, work: Callable[[], T]) -> T:
    """Do `work` on a thread of its own inside a namespace, and wait for it."""
    made: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            made.append(network.inside(network.NETNS / name, work))
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return made[0]


@contextmanager
def proving_ground() -> Iterator[Ground]:
    """The two namespaces, wired, with the world answering; all of it goes with the block."""
    ground = Ground(f"mftest-m{os.getpid()}", f"mftest-w{os.getpid()}")
    with contextlib.ExitStack() as stack:
        for name in (ground.machine, ground.world):
            sh("ip", "netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=False)
            in_namespace(name, lambda: network.PING.write_text("0 2147483647\n"))
        enter = f"--net={network.NETNS / ground.machine}"
        sh(
            *("nsenter", enter, "ip", "-batch", "-"),
            stdin=f"""\
link set lo up
link add uplink type veth peer name out netns {ground.world}
address add {MACHINES_OWN}/24 dev uplink
address add {MACHINES_OWN_V6}/64 dev uplink nodad
link set uplink up
route add default via {PUBLIC}
""",
        )
        addresses = [f"{a}/32" for a in (*FORBIDDEN, ALLOWED, RESOLVER)]
        addresses += [f"{a}/128" for a in FORBIDDEN_V6]
        own = "\n".join(f"address add {a} dev lo" for a in addresses)
        sh(
            *("nsenter", f"--net={network.NETNS / ground.world}", "ip", "-batch", "-"),
            stdin=f"""\
link set lo up
address add {PUBLIC}/24 dev out
address add {OTHER_DNS}/24 dev out
address add 2001:db8:1::10/64 dev out nodad
link set out up
{own}
route add 198.18.0.0/15 via {MACHINES_OWN}
route add fd00:f::/64 via {MACHINES_OWN_V6}
""",
        )
        sh("nsenter", enter, "ip", "-6", "route", "add", "default", "via", "2001:db8:1::10")
        stack.enter_context(answering(ground.world, echo=(PORT, 7), dns=True))
        stack.enter_context(watching(ground))
        yield ground


@contextmanager
def answering(namespace: str, echo: tuple[int, ...] = (PORT,), dns: bool = False) -> Iterator[None]:
    """Echo TCP and UDP at every address of a namespace, and answer DNS where that is wanted."""
    wanted = [(port, _echo) for port in echo] + ([(53, _dns)] if dns else [])

    def make() -> list[tuple[socket.socket, Answer]]:
        return [
            (_bound(kind, port), answer)
            for port, answer in wanted
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ]

    made = in_namespace(namespace, make)
    stop, stopped = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(made, stopped))
    thread.start()
    try:
        yield
    finally:
        stop.close()
        thread.join()
        stopped.close()
        for each, _ in made:
            each.close()


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    """A socket at a port of every address, of either family."""
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    # An answer comes from the address that was asked.
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    made.setblocking(False)
    made.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        made.listen(64)
    return made


def _serve(sockets: list[tuple[socket.socket, Answer]], stopped: socket.socket) -> None:
    """Answer until `stopped` says so. Nobody waits for a client that sends nothing."""
    with selectors.DefaultSelector() as selector:
        selector.register(stopped, selectors.EVENT_READ)
        for each, answer in sockets:
            selector.register(each, selectors.EVENT_READ, answer)
        open_: set[socket.socket] = set()
        while True:
            for key, _ in selector.select():
                if key.fileobj is stopped:
                    for each in open_:
                        each.close()
                    return
                assert isinstance(key.fileobj, socket.socket)
                sock, answer = key.fileobj, key.data
                with contextlib.suppress(OSError):
                    if sock.type == socket.SOCK_DGRAM:
                        _answer_datagram(sock, answer)
                    elif sock in open_:
                        selector.unregister(sock)
                        open_.remove(sock)
                        with sock:
                            _answer_stream(sock, answer)
                    else:
                        connection, _ = sock.accept()
                        open_.add(connection)
                        selector.register(connection, selectors.EVENT_READ, answer)


def _answer_datagram(sock: socket.socket, answer: Answer) -> None:
    data, ancillary, _, peer = sock.recvmsg(4096, 256)
    if reply := answer(data):
        sock.sendmsg([reply], ancillary, 0, peer)


def _answer_stream(sock: socket.socket, answer: Answer) -> None:
    framed = answer is _dns
    data = sock.recv(4096)
    if reply := answer(data[2:] if framed else data):
        sock.sendall(struct.pack("!H", len(reply)) + reply if framed else reply)


def _echo(data: bytes) -> bytes:
    return data


def _dns(query: bytes) -> bytes:
    """An A record for every name: the registry's address. Nothing for any other question."""
    end = query.find(b"\0", 12) + 5
    if len(query) < 17 or end < 17:
        return b""
    question, kind = query[12:end], query[end - 4 : end - 2]
    count = 1 if kind == b"\0\1" else 0
    head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, count, 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + ipaddress.IPv4Address(PUBLIC).packed
    return head + question + record * count


@contextmanager
def watching(ground: Ground) -> Iterator[None]:
    """Note every packet that arrives in the world, by a tap on its end of the uplink."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))  # ETH_P_ALL
        made.bind(("out", 0))
        return made

    tap = in_namespace(ground.world, make)
    stop, stopped = socket.socketpair()

    def watch() -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(tap, selectors.EVENT_READ)
            selector.register(stopped, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is stopped:
                        return
                    frame, (_, _, kind, _, _) = tap.recvfrom(2048)
                    if kind != socket.PACKET_OUTGOING and (line := described(frame)):
                        ground.seen.append(line)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.close()
        thread.join()
        stopped.close()
        tap.close()


def described(frame: bytes) -> str:
    """One line for an IP packet; nothing for ARP, and for what IPv6 says on its own (ND, MLD)."""
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        protocol, head = packet[9], (packet[0] & 15) * 4
        source, target = (socket.inet_ntop(socket.AF_INET, packet[n : n + 4]) for n in (12, 16))
    elif kind == b"\x86\xdd":
        protocol, head = packet[6], 40
        source, target = (socket.inet_ntop(socket.AF_INET6, packet[n : n + 16]) for n in (8, 24))
        if protocol == 0 or (protocol == 58 and packet[40] >= 130):
            return ""
    else:
        return ""
    port = ""
    if protocol in (6, 17):
        port = f":{struct.unpack('!H', packet[head + 2 : head + 4])[0]}"
    name = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}.get(protocol, str(protocol))
    return f"{name} {source} > {target}{port}"
