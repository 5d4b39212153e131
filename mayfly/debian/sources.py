"""Where this machine gets its Debian packages, read from its own apt configuration.

No mirror's name is written in this project: a company's mirror, a proxy or the public one all come
from /etc/apt. Parsing is pure; `host_sources` reads the files.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mayfly.errors import MachineUnfit

ARCHIVE_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# apt's own settings that decide whether a mirror can be reached and believed at all.
_FORWARDED = re.compile(
    r"^(Acquire::(?:http|https)::(?:Proxy|CAInfo|Verify-Peer)[^ ]*|Acquire::Check-[A-Za-z-]+"
    r'|Acquire::Retries) "[^"\n]*";$'
)


@dataclass(frozen=True)
class Source:
    """One entry: every suite of it at every URI. `signed_by` is a path, or empty for apt's own."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def parse_deb822(text: str) -> list[Source]:
    """The enabled `deb` entries of a `.sources` file. Malformed stanzas are left out."""
    found: list[Source] = []
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", uncommented):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t") and key:
                fields[key] += "\n" + line.strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        source = Source(
            tuple(fields.get("uris", "").split()),
            tuple(fields.get("suites", "").split()),
            tuple(fields.get("components", "").split()),
            fields.get("signed-by", ""),
        )
        if source.uris and source.suites:
            found.append(source)
    return found


def parse_one_line(text: str) -> list[Source]:
    """The `deb` lines of a `.list` file. Malformed lines are left out."""
    found: list[Source] = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?([^#]*)", line)
        if not match:
            continue
        words = match[2].split()
        if len(words) < 2:
            continue
        options = dict(option.split("=", 1) for option in (match[1] or "").split() if "=" in option)
        found.append(
            Source((words[0],), (words[1],), tuple(words[2:]), options.get("signed-by", ""))
        )
    return found


def retarget(sources: Iterable[Source], host: str, suite: str) -> list[Source]:
    """Debian's own entries of release `host`, pointed at `suite`; equal entries become one.

    Only the release, its updates and its security suite are taken, only `main`, and only entries
    signed by Debian's archive key (or, where no entry says, by whatever apt trusts). Third parties'
    entries, backports and proposed updates fall away.
    """
    names = {host, "stable"}
    kept: list[Source] = []
    for source in sources:
        moved = (_moved(name, names, suite) for name in source.suites)
        suites = tuple(dict.fromkeys(name for name in moved if name))
        if suites and "main" in source.components:
            kept.append(replace(source, suites=suites, components=("main",)))
    official = [s for s in kept if Path(s.signed_by).name.startswith("debian-archive-")]
    chosen = official or [s for s in kept if not s.signed_by]
    return list(dict.fromkeys(replace(s, signed_by=ARCHIVE_KEYRING) for s in chosen))


def _moved(name: str, hosts: set[str], suite: str) -> str:
    match = re.fullmatch(r"([a-z]+)(|-updates|-security|/updates)", name)
    if not match or match[1] not in hosts:
        return ""
    return suite + ("-security" if match[2] == "/updates" else match[2])


def render(sources: Sequence[Source], *, signed_by: bool = True) -> str:
    """The entries as a deb822 file."""
    stanzas = []
    for source in sources:
        lines = [
            "Types: deb",
            f"URIs: {' '.join(source.uris)}",
            f"Suites: {' '.join(source.suites)}",
            f"Components: {' '.join(source.components)}",
        ]
        if signed_by and source.signed_by:
            lines.append(f"Signed-By: {source.signed_by}")
        stanzas.append("\n".join(lines) + "\n")
    return "\n".join(stanzas)


def host_sources(suite: str, root: Path = Path("/")) -> list[Source]:
    """This machine's Debian mirror, for `suite`.

    Raises `MachineUnfit` where /etc/apt names none (not Debian).
    """
    apt = root / "etc/apt"
    found: list[Source] = []
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.is_file():
            found += parse_one_line(path.read_text())
        elif path.suffix == ".sources" and path.is_file():
            found += parse_deb822(path.read_text())
    found = [replace(s, uris=tuple(_listed(uri, root) for uri in s.uris)) for s in found]
    chosen = retarget(found, _codename(root), suite)
    if not any(suite in source.suites for source in chosen):
        raise MachineUnfit(
            "no Debian mirror in /etc/apt",
            hint="golden and base images are made on Debian; add a signed Debian entry there",
        )
    return chosen


def _listed(uri: str, root: Path) -> str:
    """The first mirror of a list (apt-transport-mirror(1)), as clouds' images have them: no image
    has that file. Anything else, or a list that cannot be read, is as it was.
    """
    scheme, _, path = uri.partition(":")
    if scheme != "mirror+file":
        return uri
    try:
        lines = (root / path.lstrip("/")).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return uri
    words = (line.split() for line in lines if not line.lstrip().startswith("#"))
    return next((first for first, *_ in filter(None, words)), uri)


def _codename(root: Path) -> str:
    try:
        text = (root / "etc/os-release").read_text()
    except OSError:
        return ""
    match = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', text, re.MULTILINE)
    return match[1] if match else ""


def host_apt_options() -> list[str]:
    """apt settings of this machine without which its mirror may be out of reach (a proxy, a CA)."""
    try:
        dump = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line for line in dump.splitlines() if _FORWARDED.match(line)]
