"""The command as a step of a build from an image, so that it gets what a build gets, and no more.

    FROM IMAGE AS run          COPY . .          RUN the command, and keep its status and artifacts
    FROM scratch               COPY those        written to a tar on this machine

The step itself succeeds however the command ends: a step that fails leaves nothing that could be
copied, and reports belong to failed tests. It is never taken from a cache. Its output comes as
JSON, each piece with the stream that it was written to, and is passed on there. Values of --env
reach it as secrets: a step's name, which has its command in it, is kept with the build's usage.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mayfly import flow
from mayfly.build.progress import Ran
from mayfly.build.terminal import writer
from mayfly.config import Config
from mayfly.run import artifacts, ignored
from mayfly.run.request import STAGE, Run

OURS = ".mayfly"
"""The folder in the image that holds what comes back."""

QUIET = {"BUILDX_GIT_INFO": "0"}
"""buildx would look for a commit to write into an image, and complain where there is none."""

STDOUT = 1
_RUN = f"[{STAGE} "
_FROM = re.compile(r"\[[^\]]*\] (?:load metadata for|FROM) (?P<reference>\S+)")

VALUE = "MAYFLY_VALUE_"
"""Variables of buildx, and of the step, that hold the values of --env."""

KEEP = """\
{environment}"$@"
status=$?
mkdir -p /{ours}/files && echo "$status" > /{ours}/status || exit 1
cd /src || exit 1
for file in {artifacts}; do
    [ -e "$file" ] || continue
    folder=/{ours}/files/$(dirname "$file")
    mkdir -p "$folder" && cp -a "$file" "$folder"
done
exit 0
"""


def dockerfile(run: Run) -> str:
    """The Dockerfile of the command. Pure."""
    held = {name: f"{VALUE}{number}" for number, name in enumerate(run.env)}
    mounts = "".join(f"--mount=type=secret,id={it},env={it},required " for it in held.values())
    script = KEEP.format(
        environment=_environment(held),
        ours=OURS,
        artifacts=artifacts.shell_words(run.artifacts),
    )
    step = json.dumps(["/bin/sh", "-c", script, "mayfly", *run.command])
    return (
        f"FROM {run.image} AS {STAGE}\nUSER 0\nWORKDIR /src\nCOPY . .\nRUN {mounts}{step}\n"
        f"FROM scratch\nCOPY --from={STAGE} /{OURS} /{OURS}\n"
    )


def _environment(held: Mapping[str, str]) -> str:
    """The lines that put the variables `held` by others in front of the command in "$@"."""
    if not held:
        return ""
    words = " ".join(f'{name}="${it}"' for name, it in held.items())
    return f'set -- env {words} "$@"\nunset {" ".join(held.values())}\n'


@dataclass(slots=True)
class Output:
    """Reads buildx's raw JSON, and the tar at its end, for one run.

    `status` is the command's own, None until it has one; `unread` are images that a step wanted to
    read and did not.
    """

    tar: Path
    status: int | None = None
    unread: list[str] = field(default_factory=list)
    _rest: bytes = b""
    _names: dict[str, str] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Forget what another runner did."""
        self.tar.unlink(missing_ok=True)
        self.status, self._rest = None, b""
        for kept in (self._names, self._failed, self.unread):
            kept.clear()

    def feed(self, data: bytes) -> bytes:
        """Pass on what the command says to where it says it, and what BuildKit says to stderr."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return b"".join(piece for line in lines for piece in self._line(line))

    def _line(self, line: bytes) -> Iterator[bytes]:
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            if line.strip():
                writer(sys.stderr.buffer)(line + b"\n")
                yield line + b"\n"
            return
        for vertex in said.get("vertexes") or ():
            yield from self._vertex(vertex)
        for piece in said.get("logs") or ():
            yield from self._piece(piece)

    def _vertex(self, vertex: Mapping[str, object]) -> Iterator[bytes]:
        digest, name = str(vertex.get("digest", "")), str(vertex.get("name", ""))
        self._names[digest] = name
        error = vertex.get("error")
        if error and digest not in self._failed:
            self._failed.add(digest)
            if image := _FROM.match(name):
                self.unread.append(image["reference"])
            line = f"{name}: {error}\n".encode()
            writer(sys.stderr.buffer)(line)
            yield line

    def _piece(self, piece: Mapping[str, object]) -> Iterator[bytes]:
        try:
            data = base64.b64decode(str(piece.get("data") or ""))
        except (ValueError, binascii.Error):
            return
        out = sys.stdout if piece.get("stream") == STDOUT else sys.stderr
        writer(out.buffer)(data)
        yield data

    def ended(self, ran: Ran) -> Ran:
        """A buildx that succeeded ended as the command did."""
        ran.timeline.unread += self.unread
        ran.timeline.began = bool(self._names)
        if ran.status == 0:
            self.status = read_status(self.tar)
            return replace(ran, status=self.status and 1)
        return ran


def read_status(tar: Path) -> int:
    """The command's status in what came back; 255 where there is none that can be one."""
    try:
        with tarfile.open(tar) as opened:
            entry = opened.extractfile(f"{OURS}/status")
            status = int(entry.read(16)) if entry else 255
    except (OSError, KeyError, ValueError, tarfile.TarError):
        return 255
    return status if 0 <= status <= 255 else 255


@contextmanager
def prepared(
    run: Run, config: Config, environ: Mapping[str, str]
) -> Iterator[tuple[flow.Request, Output]]:
    """The build that the command is, and who reads its output; its files go with the block.

    Raises `UsageError` and `MachineUnfit`.
    """
    with tempfile.TemporaryDirectory(prefix="mayfly-") as made:
        folder = Path(made)
        file, tar = folder / "Dockerfile", folder / "out.tar"
        file.write_text(dockerfile(run))
        lines = ignored.lines(run.folder)
        if lines is not None:
            text = "".join(f"{line}\n" for line in lines)
            (folder / "Dockerfile.dockerignore").write_text(text, errors="surrogateescape")
        output = Output(tar)
        values = {f"{VALUE}{number}": value for number, value in enumerate(run.env.values())}
        buildx = (
            *(word for name in values for word in ("--secret", f"id={name},env={name}")),
            *("--file", str(file), "--progress", "rawjson", "--provenance=false"),
            *("--no-cache-filter", STAGE, "--output", f"type=tar,dest={tar}", str(run.folder)),
        )
        yield (
            flow.Request(
                args=replace(run.args, buildx=buildx),
                repo=run.repo,
                ref=run.ref,
                event=run.event,
                registry_host=config.registry_host,
                buildx=flow.buildx_of(config),
                environ={**environ, **QUIET, **values},
                bases=(run.image,),
                registry=config.registry,
                caches=config.caches,
                spec=run.spec,
                languages=run.languages,
                watching=output,
            ),
            output,
        )
