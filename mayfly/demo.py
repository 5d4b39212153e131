"""`make demo`: an example built twice, cold and then warm, each in a fresh VM.

What is there already is used and stays: a running farm is not stopped, a golden image and a base
image are not made again. What the demo started, it stops.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mayfly import base, client, config, stack
from mayfly.cli.main import guarded
from mayfly.cli.output import seconds, show
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MachineUnfit, MayflyError
from mayfly.stack.secrets import auth_file

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "python-web"
REPO = "examples/python-web"
IMAGE = f"images/{REPO}"
BASE = "python"
PULLED = "python-web"


@dataclass(frozen=True, slots=True)
class Built:
    """One of the two builds: what `mayfly build` wrote into its metadata file, and its length."""

    name: str
    digest: str
    timings_s: dict[str, float]
    whole_s: float


def run() -> int:
    """The demo, from nothing to nothing. Raises the `MayflyError` of whatever fails."""
    if not EXAMPLE.is_dir():
        raise MachineUnfit(f"the example is not at {EXAMPLE}", hint="run from a checkout")
    settings = config.load()
    with running(settings) as ours, tempfile.TemporaryDirectory(prefix="mayfly-demo-") as scratch:
        base.publish(settings, BASE, show)
        tag = f"{IMAGE}:demo"
        key = f"demo-{int(time.time())}"
        cold = build("cold", tag, key, Path(scratch), "--no-cache")
        warm = build("warm", tag, key, Path(scratch))
        table((cold, warm))
        pull(settings, warm.digest, Path(scratch))
    if ours:
        show("stopped what the demo started; images, cache and golden image stay for the next time")
        show("`make clean`, or `mayfly down --purge`, removes those too")
    else:
        show("Mayfly was running before and still is")
    return 0


@contextmanager
def running(settings: Config) -> Iterator[bool]:
    """Mayfly running; yields whether it was started here, and stops it then."""
    if answers(settings):
        show("Mayfly is running already")
        yield False
        return
    stack.up(settings, detach=True, progress=show)
    try:
        yield True
    finally:
        stack.down(settings, purge=False, progress=show)


def answers(settings: Config) -> bool:
    """Whether this machine's farm answers."""

    async def ask() -> None:
        async with client.from_environment(settings) as farm:
            await farm.status()

    try:
        asyncio.run(ask())
    except MayflyError:
        return False
    return True


def build(name: str, tag: str, key: str, scratch: Path, *flags: str) -> Built:
    """`mayfly build` of the example, as a person would call it."""
    metadata = scratch / f"{name}.json"
    words = ["build", *flags, "--mayfly-repo", REPO, "--mayfly-cache-key", key]
    words += ["-t", tag, "--push", "--metadata-file", str(metadata), str(EXAMPLE)]
    show(f"{name} build: mayfly {shlex.join(words)}")
    started_at = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "mayfly.cli.main", *words], check=False)
    whole_s = time.monotonic() - started_at
    if done.returncode != 0:
        raise InfrastructureError(
            f"the {name} build ended with status {done.returncode}", hint="its output is above"
        )
    found: dict[str, Any] = json.loads(metadata.read_text())
    return Built(name, found["containerimage.digest"], found["mayfly"]["timings_s"], whole_s)


def table(builds: tuple[Built, ...]) -> None:
    """Where the time went, side by side."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title="the same Dockerfile, each time in a fresh VM")
    drawn.add_column("")
    for built in builds:
        drawn.add_column(built.name, justify="right")
    for label, phase in (("lease to ready", "ready"), ("build", "build"), ("push", "push")):
        drawn.add_row(label, *(seconds(built.timings_s[phase]) for built in builds))
    drawn.add_row("in all", *(seconds(built.whole_s) for built in builds))
    Console().print(drawn)


def pull(settings: Config, digest: str, scratch: Path) -> None:
    """Print the commands with which any client sees and fetches the image; fetch it as proof."""
    if shutil.which("skopeo") is None:
        raise MachineUnfit("skopeo is not installed", hint="apt-get install skopeo")
    inspect, copy = skopeo(settings, digest)
    print(f"digest: {digest}")
    print("an independent client looks at it and pulls it, while Mayfly runs (`make up`), with")
    print(f"  {shlex.join(inspect)}\n  {shlex.join(copy)}")
    done = subprocess.run(copy, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InfrastructureError(f"skopeo could not pull it: {done.stderr.strip()}")
    size = sum(file.stat().st_size for file in (scratch / PULLED).iterdir())
    show(f"done just now: skopeo pulled {size / 1e6:.1f} MB")


def skopeo(settings: Config, digest: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two commands: show the image, copy it into a folder of the current directory. Pure.

    They name the file with the token; the token itself would show in the list of processes.
    """
    trust = str(settings.state / "trust")
    auth = ("--authfile", str(auth_file(settings)))
    image = f"docker://{settings.registry_host}/{IMAGE}@{digest}"
    return (
        ("skopeo", "inspect", "--cert-dir", trust, *auth, image),
        ("skopeo", "copy", "--src-cert-dir", trust, *auth, image, f"dir:{PULLED}"),
    )


if __name__ == "__main__":
    raise SystemExit(guarded(run))
