"""`make_base`: a base image of a kind, from Debian packages."""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path

from mayfly.base import oci
from mayfly.debian import sources
from mayfly.debian.bootstrap import Package, Progress, bootstrap, remove_tree, trust
from mayfly.debian.process import disk_full
from mayfly.errors import InfrastructureError, UsageError

SUITE = "trixie"
STORE = "/etc/ssl/certs/ca-certificates.crt"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_EXCLUDE = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
)


@dataclass(frozen=True)
class Kind:
    """What a kind of base image has beyond a minimal Debian."""

    packages: tuple[str, ...]
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


KINDS: Mapping[str, Kind] = {
    "debian": Kind(packages=("ca-certificates",), command=("bash",)),
    # As in the image that Dockerfiles are written for, `python` and `pip` are there and pip
    # installs for everybody: a container is its own virtual environment.
    "python": Kind(
        packages=("ca-certificates", "python3", "python3-pip", "python3-venv"),
        command=("python3",),
        env={"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_ROOT_USER_ACTION": "ignore",
             "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        links={"usr/local/bin/python": "/usr/bin/python3"},
    ),
}  # fmt: skip

# What programs that bring a trust store of their own read instead of the system's.
_TRUST_ENV = (
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
)


def environment(kind: Kind, *, site: bool) -> dict[str, str]:
    """The image's environment; with a site's certificates (`site`) everything trusts them."""
    trusting = dict.fromkeys(_TRUST_ENV, STORE) if site else {}
    return {"PATH": PATH, "LANG": "C.UTF-8", **trusting, **kind.env}


def make_base(
    kind: str,
    out: Path,
    *,
    site_certificates: Sequence[Path],
    today: date,
    progress: Progress,
) -> Path:
    """Make a base image and return its OCI layout folder, `<out>/<kind>`, tagged `latest`.

    `kind` is one of `KINDS`. The image has a `ref` label with the suite and a label with a
    checksum over its packages. A folder that is there is replaced when the new one is whole; when
    making it fails, the old one stays and nothing else is left. Takes about half a minute.

    Raises `UsageError` for an unknown kind, `MachineUnfit` (not root, no mmdebstrap, no mirror) or
    `InfrastructureError`.
    """
    if kind not in KINDS:
        raise UsageError(f"no base image called {kind}", hint=f"there are {', '.join(KINDS)}")
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=out))
    try:
        work.chmod(0o755)
        layout = _make(KINDS[kind], kind, work, site_certificates, today, progress)
        remove_tree(out / kind)
        layout.rename(out / kind)
    except OSError as fault:
        if fault.errno == errno.ENOSPC:
            raise disk_full(f"base image {kind}") from fault
        raise InfrastructureError(f"base image {kind}: {fault}") from fault
    finally:
        remove_tree(work)
    progress(f"base image {kind} is ready")
    return out / kind


def _make(
    kind: Kind,
    name: str,
    work: Path,
    certificates: Sequence[Path],
    today: date,
    progress: Progress,
) -> Path:
    root = work / "root"
    midnight = datetime.combine(today, time(), UTC)
    epoch = int(midnight.timestamp())
    mirror = sources.host_sources(SUITE)
    packages = bootstrap(
        root,
        suite=SUITE,
        variant="minbase",
        packages=kind.packages,
        architecture="amd64",
        epoch=epoch,
        progress=progress,
        mirror=mirror,
        exclude=_EXCLUDE,
        include=("/usr/share/doc/*/copyright",),
    )
    trust(root, certificates)
    settle(root, kind, mirror)
    progress("writing the layer")
    layout = work / "layout"
    oci.write_layout(
        layout,
        root,
        tag="latest",
        env=environment(kind, site=bool(certificates)),
        command=kind.command,
        labels={
            "org.opencontainers.image.title": f"base/{name}",
            "org.opencontainers.image.version": SUITE,
            "dev.mayfly.packages": packages_digest(packages),
        },
        created=midnight.isoformat().replace("+00:00", "Z"),
        epoch=epoch,
    )
    return layout


def packages_digest(packages: Sequence[Package]) -> str:
    """One checksum over all packages and theirs; the order is nothing."""
    lines = sorted(f"{p.name} {p.version} {p.architecture} {p.sha256}\n" for p in packages)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def settle(root: Path, kind: Kind, mirror: Sequence[sources.Source]) -> None:
    """Links and apt's mirror in, identities and logs out."""
    for path, target in kind.links.items():
        (root / path).symlink_to(target)
    apt = root / "etc/apt"
    (apt / "sources.list").unlink(missing_ok=True)
    folder = apt / "sources.list.d"
    folder.mkdir(exist_ok=True)
    for leftover in folder.iterdir():
        leftover.unlink()
    (folder / "debian.sources").write_text(sources.render(mirror))
    options = sources.host_apt_options()
    if options:
        (apt / "apt.conf.d" / "90-site").write_text("\n".join(options) + "\n")
    (apt / "apt.conf.d" / "80-container").write_text(
        'APT::Install-Recommends "false";\nAcquire::Languages "none";\n'
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\n'
    )
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").unlink(missing_ok=True)
    for log in (root / "var/log").rglob("*"):
        if log.is_file():
            log.unlink()
