"""mmdebstrap: a root folder from packages, and what exactly went into it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mayfly.debian import foreign, process, sources
from mayfly.errors import InfrastructureError, MachineUnfit

Progress = Callable[[str], None]
MACHINE = "amd64"  # Debian's name for what golden and base images are made on


@dataclass(frozen=True, order=True)
class Package:
    """One installed Debian package and the checksum of the file it came from."""

    name: str
    version: str
    architecture: str
    sha256: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The stanzas of a Packages or status file; continuation lines are dropped."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif line[0] not in " \t" and ": " in line:
            key, _, value = line.partition(": ")
            fields[key] = value.strip()
    if fields:
        yield fields


def match_packages(status: str, indices: Iterable[str]) -> list[Package]:
    """Every installed package with its checksum, sorted.

    `status` is dpkg's file, `indices` the Packages files it was installed from. Raises
    `InfrastructureError` when a package is in none of them: an image never has bytes without one.
    """
    wanted = {
        (s["Package"], s["Version"], s["Architecture"])
        for s in stanzas(status)
        if s.get("Status", "").endswith(" installed")
    }
    found: dict[tuple[str, str, str], str] = {}
    for index in indices:
        for s in stanzas(index):
            key = (s.get("Package", ""), s.get("Version", ""), s.get("Architecture", ""))
            if key in wanted and "SHA256" in s:
                found[key] = s["SHA256"]
    if missing := sorted(wanted - found.keys()):
        raise InfrastructureError(f"package without a recorded checksum: {missing[0][0]}")
    return sorted(Package(*key, sha256) for key, sha256 in found.items())


def need_root() -> None:
    """Raises `MachineUnfit` when this process is not root, as whoever makes an image must be."""
    if os.geteuid() != 0:
        raise MachineUnfit("making an image needs root", hint="run it with sudo")


def bootstrap(
    target: Path,
    *,
    suite: str,
    variant: str,
    packages: Sequence[str],
    architecture: str,
    epoch: int,
    progress: Progress,
    mirror: Sequence[sources.Source],
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    early: Path | None = None,
) -> list[Package]:
    """Make `target` (which must not exist) a root of `packages`; what was installed, sorted.

    The folder `early` is copied into the root before packages are unpacked. `epoch` is the Unix
    time that generated files get. Needs root. The package lists stay out of the result. Raises
    `MachineUnfit` (also where programs of `architecture` cannot run) or `InfrastructureError`;
    `target` may then be there in part: the caller removes it with `remove_tree`.
    """
    need_root()
    if os.uname().machine != "x86_64":
        raise MachineUnfit("golden and base images are made on x86-64 machines")
    argv: list[str | Path] = [
        *apart(architecture),
        "mmdebstrap", "--mode=root", f"--variant={variant}", f"--architectures={architecture}",
        "--format=directory", "--skip=cleanup/apt/lists",
        f"--include={','.join(packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        *(f"--aptopt={option.rstrip(';')}" for option in sources.host_apt_options()),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in exclude),
        *(f"--dpkgopt=path-include={pattern}" for pattern in include),
        *([f"--setup-hook=cp -rT {shlex.quote(str(early))} \"$1\""] if early else []),
        suite, target, "-",
    ]  # fmt: skip

    def on_line(line: str) -> None:
        if match := re.match(r"I: (.*?)\.*$", line):
            progress(f"debian {suite}: {match[1]}")

    process.run(
        argv,
        what=f"installing Debian {suite}",
        stdin=sources.render(mirror),
        env={"SOURCE_DATE_EPOCH": str(epoch), "TMPDIR": str(target.parent)},
        on_line=on_line,
    )
    lists = target / "var/lib/apt/lists"
    installed = match_packages(
        (target / "var/lib/dpkg/status").read_text(),
        (path.read_text() for path in sorted(lists.glob("*_Packages"))),
    )
    shutil.rmtree(lists)
    lists.mkdir()
    return installed


def own_mounts(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """What runs a command in a mount namespace of its own: the mounts of one that is killed vanish.

    In a chroot `/` is no mount point, so how mounts propagate cannot be changed (unshare(1)).
    """
    points = [line.split()[4] for line in mountinfo.read_text().splitlines()]
    propagation = "private" if "/" in points else "unchanged"
    return ["unshare", "--mount", "--propagation", propagation, "--"]


def apart(architecture: str) -> list[str]:
    """What runs a command, and the programs of `architecture` that it starts, in mounts of its own.

    Raises `MachineUnfit` where such programs cannot run.
    """
    if architecture == MACHINE:
        return own_mounts()
    return foreign.emulation(architecture) or own_mounts()


def in_root(
    root: Path,
    argv: Sequence[str],
    *,
    what: str,
    architecture: str = MACHINE,
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """Run a program of `root`, a root of `architecture`, inside it; what it printed.

    `env` is added to the little that it gets. Raises what `process.run` and `apart` do.
    """
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
    return process.run(
        [*apart(architecture), "chroot", root, *argv], what=what, env={**clean, **(env or {})}
    )


def trust(root: Path, certificates: Sequence[Path], architecture: str = MACHINE) -> None:
    """Add a site's CA certificates (PEM files) to the trust store of `root`.

    A no-op without any. Raises `MachineUnfit` when a file is not there.
    """
    folder = root / "usr/local/share/ca-certificates"
    folder.mkdir(parents=True, exist_ok=True)
    for certificate in certificates:
        try:
            shutil.copyfile(certificate, folder / f"{certificate.stem}.crt")
        except OSError as fault:
            raise MachineUnfit(f"site certificate {certificate}: {fault.strerror}") from fault
    if certificates:
        in_root(
            root,
            ["update-ca-certificates", "--fresh"],
            what="trusting site certificates",
            architecture=architecture,
        )


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; silently when it is not there. Never crosses a mount."""
    if path.is_dir() and not path.is_symlink():
        process.run(["rm", "-rf", "--one-file-system", path], what=f"removing {path.name}")
