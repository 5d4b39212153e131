"""`make_base`: a base image of a kind and for a platform, from Debian packages."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time
from pathlib import Path

from mayfly.base import oci, site
from mayfly.base.kinds import KINDS, FromWheel, Kind, environment
from mayfly.base.platform import OWN, Platform
from mayfly.debian import sources
from mayfly.debian.bootstrap import Package, Progress, bootstrap, in_root, remove_tree, trust
from mayfly.debian.process import disk_full
from mayfly.debian.wheel import unpack_wheel
from mayfly.errors import InfrastructureError, UsageError

SUITE = "trixie"
_USER_ID = 1000

_EXCLUDE = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
)


def known(kind: str) -> None:
    """Raises `UsageError` for a kind that there is not."""
    if kind not in KINDS:
        raise UsageError(f"no base image is called {kind!r}", hint=f"use {', '.join(KINDS)}")


def make_base(
    kind: str,
    out: Path,
    *,
    site_certificates: Sequence[Path],
    today: date,
    progress: Progress,
    platform: Platform = OWN,
) -> Path:
    """Make a base image and return its OCI layout folder, `<out>/<kind>`, tagged `latest`.

    `kind` is one of `KINDS`. The image's labels name the suite and a checksum over its packages;
    the same packages, settings and day (UTC) give the same image. A folder that is there is
    replaced when the new one is whole; when making it fails, the old one stays and nothing else is
    left. Takes about half a minute, for a platform that is emulated some minutes.

    Raises `UsageError` for an unknown kind, `MachineUnfit` (not root, no mmdebstrap, no mirror, no
    emulator of the platform) or `InfrastructureError`.
    """
    known(kind)
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=out))
    try:
        work.chmod(0o755)
        layout = _make(KINDS[kind], kind, platform, work, site_certificates, today, progress)
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
    platform: Platform,
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
        architecture=platform.debian,
        epoch=epoch,
        progress=progress,
        mirror=mirror,
        exclude=(*_EXCLUDE, *kind.exclude),
        include=("/usr/share/doc/*/copyright",),
    )
    trust(root, certificates, platform.debian)
    tools = site.read(kind.site, site.Machine(os.environ, Path.home()))
    apt_sources, apt_options, apt_left_out = public(mirror, sources.host_apt_options())
    for setting in (*tools.left_out, *apt_left_out):
        progress(f"{setting}, and stays out of the image")
    if not apt_sources:
        progress("no address of apt's sources is left: apt finds no packages in the image")
    env = {**environment(kind, trusting=bool(certificates)), **tools.env}
    settle(root, kind, apt_sources, apt_options)
    if kind.wheel:
        progress(f"fetching {kind.wheel.wheel} {kind.wheel.version}")
        _from_wheel(kind.wheel, root, work / "wheel")
    for path, text in tools.files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    if kind.prepare:
        what = f"preparing base image {name}"
        progress(what)
        in_root(
            root,
            kind.prepare,
            what=what,
            architecture=platform.debian,
            env={**env, **kind.prepare_env},
        )
    progress("writing the layer")
    layout = work / "layout"
    oci.write_layout(
        layout,
        root,
        tag="latest",
        platform=platform.oci,
        env=env,
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


def public(
    mirror: Sequence[sources.Source], options: Sequence[str]
) -> tuple[tuple[sources.Source, ...], tuple[str, ...], tuple[str, ...]]:
    """Of apt's sources and options those that are for an image, and what the others are."""
    kept = [
        replace(each, uris=tuple(uri for uri in each.uris if not site.unfit(uri)))
        for each in mirror
    ]
    left_out = [f"apt's {each.split()[0]} {why}" for each in options if (why := site.unfit(each))]
    uris = {uri for each in mirror for uri in each.uris}
    reasons = sorted({reason for uri in uris if (reason := site.unfit(uri))})
    left_out += [f"an address of apt's sources {reason}" for reason in reasons]
    open_options = tuple(option for option in options if not site.unfit(option))
    return tuple(each for each in kept if each.uris), open_options, tuple(left_out)


def settle(
    root: Path, kind: Kind, mirror: Sequence[sources.Source], options: Sequence[str]
) -> None:
    """Folders, links, the user and apt's mirror in, identities and logs out."""
    for path, mode in kind.folders.items():
        (root / path).mkdir(parents=True)
        (root / path).chmod(mode)
    for path, target in kind.links.items():
        (root / path).symlink_to(target)
    if kind.user:
        add_user(root, kind.user)
    apt = root / "etc/apt"
    (apt / "sources.list").unlink(missing_ok=True)
    folder = apt / "sources.list.d"
    folder.mkdir(exist_ok=True)
    for leftover in folder.iterdir():
        leftover.unlink()
    (folder / "debian.sources").write_text(sources.render(mirror))
    (apt / "apt.conf.d" / "99mmdebstrap").unlink(missing_ok=True)  # what it was made with
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


def add_user(root: Path, name: str) -> None:
    """A login of `root` with uid and gid 1000, without a password, and its home.

    Written here and not by useradd, which leaves backups and the day behind.
    """
    for file, line in (
        ("passwd", f"{name}:x:{_USER_ID}:{_USER_ID}::/home/{name}:/bin/bash"),
        ("group", f"{name}:x:{_USER_ID}:"),
        ("shadow", f"{name}:!:::::::"),
        ("gshadow", f"{name}:!::"),
    ):
        with (root / "etc" / file).open("a") as table:
            table.write(line + "\n")
    home = root / "home" / name
    home.mkdir()
    os.chown(home, _USER_ID, _USER_ID)


def _from_wheel(part: FromWheel, root: Path, scratch: Path) -> None:
    """The part's folder in `root`, owned by root, each file new: a cache's times are no content."""

    def copy(source: str, target: str) -> None:
        shutil.copyfile(source, target)
        shutil.copymode(source, target)

    unpack_wheel(part.wheel, part.version, part.sha256, scratch)
    target = root / part.target
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        scratch / part.member,
        target,
        symlinks=True,
        copy_function=copy,
        ignore=shutil.ignore_patterns(*part.without),
    )
