"""OCI image layouts: of one image of one layer, or of an index over images that are elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mayfly.debian.process import failure
from mayfly.errors import MachineUnfit

LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

# Rootless BuildKit cannot make device nodes, and the others belong to a running machine.
_EMPTY = ("dev", "proc", "sys", "run", "tmp")


def members(root: Path) -> Iterator[str]:
    """The paths under `root` that a layer has, sorted; of `/dev`, `/proc` … the folder alone."""
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        if inside.parts[:1] and inside.parts[0] in _EMPTY:
            folders.clear()
            continue
        folders.sort()
        for name in sorted([*folders, *files]):
            yield (inside / name).as_posix()


def write_tar(root: Path, out: IO[bytes], epoch: int) -> None:
    """Write `root` as a tar that depends on its content alone; no file is younger than `epoch`.

    Owners and modes are those of the files; hard links stay links. Raises OSError.
    """

    def settle(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if info.ischr() or info.isblk() or info.isfifo():
            return None
        info.mtime = min(int(info.mtime), epoch)
        info.uname = info.gname = ""
        return info

    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name in members(root):
            tar.add(root / name, arcname=name, recursive=False, filter=settle)


class _Hashed:
    """A file that is written and hashed at once."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._out.write(data)

    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def image_config(
    *,
    diff_id: str,
    env: Mapping[str, str],
    command: Sequence[str],
    labels: Mapping[str, str],
    created: str,
    platform: Mapping[str, str],
) -> dict[str, Any]:
    """An OCI image configuration. `created` is RFC 3339, `platform` the OCI's object of one."""
    return {
        **platform,
        "created": created,
        "config": {
            "Env": [f"{key}={value}" for key, value in sorted(env.items())],
            "Cmd": list(command),
            "Labels": dict(labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "mayfly base"}],
    }


def write_layout(
    layout: Path,
    root: Path,
    *,
    tag: str,
    platform: Mapping[str, str],
    env: Mapping[str, str],
    command: Sequence[str],
    labels: Mapping[str, str],
    created: str,
    epoch: int,
) -> str:
    """Write `root` as the one image of the new folder `layout`; its digest, `sha256:…`.

    Raises `MachineUnfit` without zstd, `InfrastructureError` or OSError when the disk is full.
    """
    blobs = _blobs(layout)
    layer, diff_id = _write_layer(blobs, root, epoch)
    config = image_config(
        diff_id=diff_id,
        env=env,
        command=command,
        labels=labels,
        created=created,
        platform=platform,
    )
    manifest = _blob(
        blobs,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _blob(blobs, config, CONFIG),
            "layers": [layer],
            "annotations": {"org.opencontainers.image.created": created, **labels},
        },
        MANIFEST,
    )
    _name(layout, manifest, tag)
    return str(manifest["digest"])


def write_index(layout: Path, manifests: Sequence[Mapping[str, Any]], *, tag: str) -> str:
    """Write an index of images that are not in the new folder `layout` themselves; its digest.

    `manifests` are OCI descriptors with a platform each. Raises OSError.
    """
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)}
    top = _blob(_blobs(layout), index, INDEX)
    _name(layout, top, tag)
    return str(top["digest"])


def descriptor(layout: Path) -> dict[str, Any]:
    """The OCI descriptor of what a layout holds, without its tag. Raises OSError."""
    (named,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    return {key: named[key] for key in ("mediaType", "digest", "size")}


def _blobs(layout: Path) -> Path:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    return blobs


def _blob(blobs: Path, value: object, media_type: str) -> dict[str, Any]:
    data = canonical(value)
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}


def _name(layout: Path, top: Mapping[str, Any], tag: str) -> None:
    named = {**top, "annotations": {"org.opencontainers.image.ref.name": tag}}
    (layout / "index.json").write_bytes(
        canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]})
    )
    (layout / "oci-layout").write_bytes(canonical({"imageLayoutVersion": "1.0.0"}))


def _write_layer(blobs: Path, root: Path, epoch: int) -> tuple[dict[str, Any], str]:
    """The layer's descriptor and the digest of its tar."""
    partial = blobs / "layer.partial"
    try:
        with partial.open("wb") as out:
            zstd = subprocess.Popen(
                ["zstd", "-q", "-T2", "-9", "-c"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.PIPE,
            )
            try:
                assert zstd.stdin is not None and zstd.stderr is not None  # noqa: S101
                tar = _Hashed(zstd.stdin)
                try:
                    write_tar(root, tar, epoch)  # type: ignore[arg-type]
                    zstd.stdin.close()
                except BrokenPipeError:
                    pass
                said = zstd.stderr.read().decode(errors="replace").splitlines()
                status = zstd.wait()
            finally:
                if zstd.poll() is None:
                    zstd.kill()
                    zstd.wait()
    except FileNotFoundError as fault:
        raise MachineUnfit("zstd is not installed", hint="`make setup` installs it") from fault
    if status != 0:
        raise failure("compressing a layer", said, status)
    with partial.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()
    size = partial.stat().st_size
    partial.rename(blobs / name)
    return {"mediaType": LAYER, "digest": f"sha256:{name}", "size": size}, tar.digest()
