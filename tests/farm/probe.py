"""Tries to reach what it is told to, and prints what answered. Standard library only: it runs
on "the machine", in a build step and as root in a guest, always as it is here.

    python3 probe.py '[["tcp", "192.0.2.1", 80], …]' [FILE]
        ->   {"tcp 192.0.2.1 80": "answers", …}

`tcp` wants a connection, `udp` and `icmp` the echo of what they sent, `dns` and `dns-tcp` an answer
to a question, `name` an address for a name, `gateway` and `api` what these say over TLS. All at
once, each for a few seconds; what does not answer is printed with the reason.
"""

import concurrent.futures
import contextlib
import json
import os
import socket
import ssl
import struct
import sys
import time
from pathlib import Path

WAIT_S = 6
ASK_EVERY_S = 1.5
"""A datagram may be lost on a busy machine, so it is sent again; TCP does that by itself."""
QUESTION = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\x08packages\x07example\0\0\1\0\1"


def main() -> None:
    found = json.dumps(attempts([tuple(each) for each in json.loads(sys.argv[1])]))
    print(found)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(found)


def attempts(wanted: list[tuple[str, str, int]]) -> dict[str, str]:
    """What becomes of each: `answers`, or why not."""
    with concurrent.futures.ThreadPoolExecutor(len(wanted)) as pool:
        found = pool.map(lambda one: attempt(*one), wanted)
        return {" ".join(map(str, one)): how for one, how in zip(wanted, found, strict=True)}


def attempt(kind: str, address: str, port: int) -> str:
    try:
        answered = KINDS[kind](address, port)
    except OSError as error:
        return type(error).__name__ + f": {error}"
    return "answers" if answered else "another answer"


def tcp(address: str, port: int) -> bool:
    with socket.create_connection((address, port), WAIT_S):
        return True


def udp(address: str, port: int) -> bool:
    token = os.urandom(12)
    return asked(address, port, token) == token


def asked(address: str, port: int, datagram: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.connect((address, port))
        return answer_to(made, datagram)


def answer_to(made: socket.socket, datagram: bytes) -> bytes:
    made.settimeout(ASK_EVERY_S)
    end = time.monotonic() + WAIT_S
    while True:
        made.send(datagram)
        try:
            return made.recv(4096)
        except TimeoutError:
            if time.monotonic() >= end:
                raise


def icmp(address: str, port: int) -> bool:
    """An echo request; the kernel fills in identifier and checksum (ICMP "ping" sockets)."""
    six = ":" in address
    family = socket.AF_INET6 if six else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    token = os.urandom(12)
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as made:
        made.connect((address, 0))
        answer = answer_to(made, struct.pack("!BBHHH", 128 if six else 8, 0, 0, 0, 1) + token)
        return answer[0] == (129 if six else 0) and answer.endswith(token)


def dns(address: str, port: int) -> bool:
    return asked(address, port, QUESTION)[:2] == QUESTION[:2]


def dns_tcp(address: str, port: int) -> bool:
    with socket.create_connection((address, port), WAIT_S) as made:
        made.sendall(struct.pack("!H", len(QUESTION)) + QUESTION)
        return made.recv(4096)[2:4] == QUESTION[:2]


def name(wanted: str, port: int) -> bool:
    return bool(socket.getaddrinfo(wanted, port, socket.AF_INET, socket.SOCK_STREAM))


def gateway(address: str, port: int) -> bool:
    """The registry's own refusal of whoever has no token."""
    return https(address, port, "/v2/").startswith(b"HTTP/1.1 401 ")


def api(address: str, port: int) -> bool:
    """The orchestrator, through whatever leads to it."""
    return https(address, port, "/healthz").startswith(b"HTTP/1.1 200 ")


def https(address: str, port: int, path: str) -> bytes:
    """The head of an answer; whose certificate it is does not matter here."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((address, port), WAIT_S) as plain:
        plain.settimeout(4 * WAIT_S)
        with tls.wrap_socket(plain) as made:
            request = f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
            made.sendall(request.encode())
            return made.recv(4096)


def path_mtu(address: str, port: int, size: int) -> int:
    """What the kernel knows of the way's MTU (bytes) after datagrams of `size` that must fit."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        made.connect((address, port))
        for _ in range(20):
            with contextlib.suppress(OSError):
                made.send(b"x" * size)
            if made.getsockopt(socket.IPPROTO_IP, 14) < size:  # IP_MTU
                break
            time.sleep(0.1)
        return int(made.getsockopt(socket.IPPROTO_IP, 14))


KINDS = {
    "tcp": tcp,
    "udp": udp,
    "icmp": icmp,
    "dns": dns,
    "dns-tcp": dns_tcp,
    "name": name,
    "gateway": gateway,
    "api": api,
}

if __name__ == "__main__":
    main()
