"""Sends frames that say what is not so, and prints what was answered to them. Standard library
only: root runs it in a guest.

    python3 forge.py '{"to": [["tcp", "192.0.2.1", 80], …], "from": ["10.0.2.99", …]}'

For each destination, each source address, each of two MAC addresses that are not the card's, and
each form (plain, with IP options, in fragments) a frame goes to whoever answers for the gateway.
It owns every source address that somebody asks for by ARP, at each of those MACs. Printed are the
destinations that answered, as `tcp 192.0.2.1 80`, how many frames went out and how many came in.
"""

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

CARD = "eth0"
GATEWAY = "10.0.2.2"
MACS = (bytes.fromhex("02000000ff01"), bytes.fromhex("02000000ff02"))
LISTEN_S = 6.0
BURST, BURST_S = 8, 0.02
"""A card's queue is short: so many frames at a time, and so many seconds between them."""
PORTS = 40000
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
ALL_NODES = b"\x33\x33\0\0\0\1"


def main() -> None:
    print(json.dumps(send(json.loads(sys.argv[1]))))


def send(told: dict[str, list[Any]]) -> dict[str, Any]:
    """Send all frames, and listen until nothing has come for a while after the last of them."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as card:
        card.bind((CARD, 0))
        promiscuous = struct.pack("iHH8s", socket.if_nametoindex(CARD), 1, 0, b"")
        card.setsockopt(263, 1, promiscuous)  # SOL_PACKET, PACKET_ADD_MEMBERSHIP
        gateway = mac_of_gateway(card)
        frames = list(forged(told["to"], told["from"], gateway))
        answered: set[str] = set()
        came = 0
        for start in range(0, len(frames), BURST):
            for frame in frames[start : start + BURST]:
                card.send(frame)
            came += listen(card, told["from"], answered, BURST_S)
        came += listen(card, told["from"], answered, LISTEN_S)
    return {"answered": sorted(answered), "sent": len(frames), "came": came}


def listen(card: socket.socket, sources: list[str], answered: set[str], wait_s: float) -> int:
    """Note what answers within `wait_s`, and answer ARP for the forged; how many frames came."""
    end, came = time.monotonic() + wait_s, 0
    while select.select([card], [], [], max(0.0, end - time.monotonic()))[0]:
        frame, about = card.recvfrom(4096)
        if about[2] == socket.PACKET_OUTGOING:
            continue
        came += 1
        if reply := arp_reply(frame, sources):
            card.send(reply)
        elif line := answer_in(frame):
            answered.add(line)
    return came


def forged(wanted: list[list[str]], sources: list[str], gateway: bytes) -> Iterator[bytes]:
    """Every frame, each from a port of its own: what answers to one of them has answered."""
    number = 0
    for kind, address, port in wanted:
        for source in sources:
            if (":" in source) != (":" in address):
                continue
            for mac in MACS:
                for frame in forms(kind, source, address, int(port), number):
                    to = gateway if number % 2 or frame[0] >> 4 == 4 else ALL_NODES
                    version = IPV6 if frame[0] >> 4 == 6 else IPV4
                    yield ethernet(to, mac, version, frame)
                    number += 1


def forms(kind: str, source: str, to: str, port: int, number: int) -> Iterator[bytes]:
    """The same packet plain, with a router alert, with a source route, and in two fragments.

    Of IPv6 there is the plain one, twice.
    """
    if ":" in to:
        yield ipv6(kind, source, to, port, number)
        yield ipv6(kind, source, to, port, number + 1)
        return
    for options in (b"", b"\x94\x04\0\0", b"\x83\x07\x04" + packed(GATEWAY) + b"\0"):
        yield ipv4(kind, source, to, payload(kind, source, to, port, number), options)
        number += 1
    body = payload(kind, source, to, port, number)
    yield ipv4(kind, source, to, body[:8], fragment=0x2000, identity=number)
    yield ipv4(kind, source, to, body[8:], fragment=1, identity=number)


def mac_of_gateway(card: socket.socket) -> bytes:
    """Ask for it by ARP, as somebody who does not exist."""
    question = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + MACS[0] + packed("10.0.2.77")
    card.send(ethernet(b"\xff" * 6, MACS[0], ARP, question + b"\0" * 6 + packed(GATEWAY)))
    end = time.monotonic() + 5
    while select.select([card], [], [], max(0.0, end - time.monotonic()))[0]:
        frame = card.recv(4096)
        if frame[12:14] == b"\x08\x06" and frame[28:32] == packed(GATEWAY):
            return frame[22:28]
    raise SystemExit("nobody answers for the gateway")


def arp_reply(frame: bytes, sources: list[str]) -> bytes:
    """That a forged source address is at a forged MAC; nothing to any other frame."""
    if frame[12:14] != b"\x08\x06" or frame[20:22] != b"\0\1":
        return b""
    wanted = frame[38:42]
    if socket.inet_ntoa(wanted) not in sources:
        return b""
    told = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + MACS[1] + wanted + frame[22:32]
    return ethernet(frame[6:12], MACS[1], ARP, told)


def answer_in(frame: bytes) -> str:
    """The destination whose answer this is: a SYN+ACK, a datagram, an echo reply."""
    if frame[12:14] == b"\x86\xdd":
        return "ipv6 " + socket.inet_ntop(socket.AF_INET6, frame[22:38])
    if frame[12:14] != b"\x08\0":
        return ""
    packet = frame[14:]
    source, body = socket.inet_ntoa(packet[12:16]), packet[(packet[0] & 15) * 4 :]
    if packet[9] == 6 and body[13] & 0x12 == 0x12:
        return f"tcp {source} {struct.unpack('!H', body[:2])[0]}"
    if packet[9] == 17:
        return f"udp {source} {struct.unpack('!H', body[:2])[0]}"
    if packet[9] == 1 and body[0] == 0:
        return f"icmp {source} 0"
    return ""


def payload(kind: str, source: str, to: str, port: int, number: int) -> bytes:
    """A SYN, a datagram or an echo request, from port (or identifier) `PORTS + number`."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, to)
    own, protocol, length = PORTS + number, protocol_of(kind, to), 20 if kind == "tcp" else 24
    if kind == "icmp":
        body, place = struct.pack("!BBHHH", 8 if ":" not in to else 128, 0, 0, own, 1), 2
    elif kind == "udp":
        body, place = struct.pack("!HHHH", own, port, length, 0), 6
    else:
        body, place = struct.pack("!HHIIBBHHH", own, port, number, 0, 0x50, 2, 65535, 0, 0), 16
    body = body.ljust(length, b"!")
    pseudo = b"" if protocol == 1 else ends + struct.pack("!II", length, protocol)
    return body[:place] + struct.pack("!H", checksum(pseudo + body)) + body[place + 2 :]


def protocol_of(kind: str, to: str) -> int:
    return {"icmp": 58 if ":" in to else 1, "tcp": 6, "udp": 17}[kind]


def ipv4(
    kind: str,
    source: str,
    to: str,
    body: bytes,
    options: bytes = b"",
    fragment: int = 0,
    identity: int = 0,
) -> bytes:
    length, protocol = 20 + len(options), protocol_of(kind, to)
    head = struct.pack("!BBH", 0x40 + length // 4, 0, length + len(body))
    head += struct.pack("!HHBBH", identity & 0xFFFF, fragment, 64, protocol, 0)
    head += packed(source) + packed(to) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def ipv6(kind: str, source: str, to: str, port: int, number: int) -> bytes:
    body = payload(kind, source, to, port, number)
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol_of(kind, to), 64)
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to)
    return head + ends + body


def ethernet(to: bytes, mac: bytes, kind: int, body: bytes) -> bytes:
    return to + mac + struct.pack("!H", kind) + body


def packed(address: str) -> bytes:
    return socket.inet_aton(address)


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


if __name__ == "__main__":
    main()
