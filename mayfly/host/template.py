"""Templates: a golden image booted once and frozen with BuildKit answering, ready to be cloned."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mayfly import golden
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.golden.recipe import file_sha256
from mayfly.host import argv, machine, scratch
from mayfly.host.agent import Agent, agent
from mayfly.host.component import runner_disks
from mayfly.host.machine import Machine
from mayfly.host.monitor import monitor
from mayfly.host.process import end, spawn
from mayfly.host.seal import Look, Seals, Spoiled, content_digest, look
from mayfly.model import GIB, MIB
from mayfly.pid import ProcessId
from mayfly.vm.provider import Progress

BOOT_TIMEOUT_S = 100
"""A cold boot takes about 20 s under TCG on two idle cores, and 50 on busy ones. One that hung, as
a guest's kernel may whose timer under TCG stays away, is not worth more; each later attempt has
this much more than the one before, for a machine that is slower than all we saw."""

ATTEMPTS = 3
"""About one cold boot in eight ends QEMU 10.0.2 under TCG with several vCPUs, while the guest's
kernel places PCI BARs (`iotlb_to_section: Assertion`); clones never place any."""

AFTER_BOOT_S = 500
"""BuildKit has 150 s of it to answer, freezing 120; saving the rest, and no limit of its own."""

SEALED = ("ram", "state", "root.qcow2", "scratch.raw")
"""The files of a template that its clones read."""

FULL_BYTES = 16 * MIB
"""With less than this free, what fails while a template is made fails for want of room."""

FORMAT = 2
"""Part of every key: raise it when what a template holds changes by the code alone."""


@dataclass(frozen=True, slots=True)
class Shape:
    """All that a template depends on: two equal shapes can share one template.

    `online_cpus` are two where there are two: with one, a clone takes twice as long to wake under
    TCG. A clone brings up, or takes down, what its size differs by.
    """

    golden_digest: str
    hardware: argv.Hardware
    cmdline: str
    registry_ca_pem: str
    online_cpus: int
    disk_bytes: int
    filesystem_bytes: int
    format: int = FORMAT

    @property
    def key(self) -> str:
        """A short name that differs whenever anything in the shape does."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Template:
    """A frozen VM on disk."""

    path: Path
    shape: Shape
    boot: argv.Boot

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def ram(self) -> Path:
        return self.path / "ram"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def disks(self) -> argv.Disks:
        return argv.Disks(self.path / "root.qcow2", "qcow2", self.path / "scratch.raw", "raw")


def shape(config: Config, found: Machine, image: golden.Golden) -> Shape:
    """The shape of this machine's one template. Raises `MachineUnfit` when no size fits."""
    fit = machine.room(config, found).fitting
    hardware = machine.hardware(config, found)
    return Shape(
        golden_digest=image.digest,
        hardware=hardware,
        cmdline=f"{image.cmdline} mayfly.registry={config.registry_host}",
        registry_ca_pem=(config.state / "ca/ca.crt").read_text(),
        online_cpus=min(2, hardware.cpus),
        disk_bytes=max(s.disk_bytes for s in fit),
        filesystem_bytes=min(s.disk_bytes for s in fit),
    )


def current(config: Config, found: Machine) -> Template | None:
    """The template for the newest golden image, when it has been made."""
    image = golden.newest(config.state)
    if image is None:
        return None
    template = _template(config, shape(config, found, image), image)
    return template if (template.path / "template.json").exists() else None


async def ensure(config: Config, found: Machine, progress: Progress, seals: Seals) -> Template:
    """The template for the newest golden image, made when it is not there.

    Template and golden image are as they were made: one whose files are not is taken away and made
    anew. `seals` remembers what was read for that, so that it is read once and not at each call.

    Raises `MachineUnfit` when there is no golden image or no size fits, `InfrastructureError` when
    the guest does not come up or the disk is full; nothing half-made is left.
    """
    image = await _sound_image(config, progress, seals)
    template = _template(config, shape(config, found, image), image)
    if (template.path / "template.json").exists():
        try:
            await _check(seals, lambda: _seal(template), content_digest)
        except Spoiled as spoiled:
            progress(f"template {template.key} is spoiled, it is made anew: {spoiled}")
            shutil.rmtree(template.path, ignore_errors=True)
        else:
            return template
    started = time.monotonic()
    progress(f"making a template of {image.name} ({found.accelerator}); this happens once")
    await _make_whole(config, template, image, progress)
    await _check(seals, lambda: _seal(template), content_digest)
    progress(f"template {template.key} is ready after {time.monotonic() - started:.0f} s")
    return template


async def _sound_image(config: Config, progress: Progress, seals: Seals) -> golden.Golden:
    """The newest golden image; while it is not what its manifest says, it is made anew."""
    for _ in range(ATTEMPTS):
        image = golden.newest(config.state)
        broken = golden.broken(config.state, image)
        if image is None and broken is None:
            raise MachineUnfit(
                "there is no golden image", hint="make one with `mayfly golden build`"
            )
        try:
            if image is None or broken is not None:
                raise Spoiled("a file of it is gone, or its manifest cannot be used")
            await _check(seals, functools.partial(_recorded, image), file_sha256)
        except Spoiled as spoiled:
            for path in [broken] if broken else [image.path] if image else []:
                progress(f"golden image {path.name} is spoiled, it is made anew: {spoiled}")
                golden.discard(path)
            await golden.make_apart(config, progress)
        else:
            return image
    raise InfrastructureError("golden images are spoiled as soon as they are made")


def _recorded(image: golden.Golden) -> Mapping[Path, str]:
    try:
        return _checksums(image, look(image.path / "manifest.json"))
    except (InfrastructureError, OSError) as error:
        raise Spoiled(str(error)) from None


@functools.lru_cache(maxsize=2)
def _checksums(image: golden.Golden, manifest: Look) -> Mapping[Path, str]:
    """What the manifest that looks so has recorded; reading it takes longer than all the rest."""
    return golden.checksums(image)


def _seal(template: Template) -> dict[Path, str]:
    """The digests of a template's files, written when it was made. Raises `Spoiled`."""
    try:
        sealed = json.loads((template.path / "seal.json").read_text())
        return {template.path / name: str(sealed[name]) for name in SEALED}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise Spoiled("its seal.json cannot be read") from None


async def _check(
    seals: Seals, recorded: Callable[[], Mapping[Path, str]], digest: Callable[[Path], str]
) -> None:
    """See that files are as recorded, by reading them only if need be. Raises `Spoiled`."""
    files = recorded()
    if not seals.unbroken(files):
        await asyncio.to_thread(seals.check, files, digest)


async def _make_whole(
    config: Config, template: Template, image: golden.Golden, progress: Progress
) -> None:
    """Make and seal a template beside its place and move it there. Raises as `ensure` does."""
    partial = template.path.with_name(f".{template.key}.partial")
    try:
        for attempt in range(1, ATTEMPTS + 1):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            boot_s = attempt * BOOT_TIMEOUT_S
            try:
                await _make(config, replace(template, path=partial), image, progress, boot_s)
                break
            except InfrastructureError as error:
                if attempt == ATTEMPTS or _full(partial):
                    raise
                progress(f"{error}; trying again")
        (partial / "template.json").write_text(json.dumps(asdict(template.shape), indent=1))
        digests = {name: partial / name for name in SEALED}
        sealed = await asyncio.to_thread(
            lambda: {name: content_digest(path) for name, path in digests.items()}
        )
        (partial / "seal.json").write_text(json.dumps(sealed, indent=1))
        shutil.rmtree(template.path, ignore_errors=True)  # of one whose removal was cut short
        partial.rename(template.path)
    except (OSError, InfrastructureError) as error:
        if _full(partial):
            raise InfrastructureError(
                f"the template could not be made: the disk of {partial.parent} is full",
                hint="make room there, or set MAYFLY_STATE elsewhere",
            ) from None
        if isinstance(error, OSError):
            raise InfrastructureError(f"the template could not be made: {error}") from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _full(path: Path) -> bool:
    """Whether there is no room any more where `path` is."""
    try:
        return shutil.disk_usage(path).free < FULL_BYTES
    except OSError:
        return False


def prune(config: Config, keep: Collection[str]) -> tuple[str, ...]:
    """Delete every template whose key is not in `keep`; returns the keys that went."""
    gone: list[str] = []
    for path in sorted((config.state / "templates").glob("*")):
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
            gone.append(path.name)
    return tuple(gone)


def _template(config: Config, wanted: Shape, image: golden.Golden) -> Template:
    boot = argv.Boot(image.kernel, image.initrd, wanted.cmdline)
    return Template(config.state / "templates" / wanted.key, wanted, boot)


async def _make(
    config: Config, template: Template, image: golden.Golden, progress: Progress, boot_s: float
) -> None:
    async with booted(config, template, image, progress, boot_s) as guest:
        progress("BuildKit answers; freezing")
        frozen = await guest.call(
            "freeze",
            {
                "online_cpus": template.shape.online_cpus,
                "registry_ca_pem": template.shape.registry_ca_pem,
            },
            timeout_s=120,
        )
        async with monitor(template.path / "qmp.sock") as qemu:
            await qemu.save(template.state)
            await qemu.quit()
    forget_boot_id(template.ram, frozen.get("boot_id"))
    for leftover in ("agent.sock", "qmp.sock"):
        (template.path / leftover).unlink(missing_ok=True)
    for path in template.path.iterdir():
        path.chmod(0o444)  # every clone's QEMU has a uid of its own


def forget_boot_id(ram: Path, told: Any) -> None:
    """Let every clone's kernel make up a boot id of its own, for all who read it there.

    Linux does so when it is first read and finds zeros (random.c, proc_do_uuid). `told` is what
    the agent says of the value and its physical address; the bytes there are changed only if they
    are that value. Raises `InfrastructureError` when they are not.
    """
    try:
        address, value = int(told["address"]), uuid.UUID(str(told["value"])).bytes
        offset = ram_offset(address, ram.stat().st_size)
        with ram.open("r+b") as memory:
            memory.seek(offset)
            if memory.read(len(value)) == value:
                memory.seek(offset)
                memory.write(bytes(len(value)))
                return
    except (KeyError, TypeError, ValueError, OSError):
        pass
    raise InfrastructureError("the template's boot id is not where its guest says")


def ram_offset(address: int, ram_bytes: int) -> int:
    """Where in a RAM file of that size a physical address is: q35 leaves a hole below 4 GiB
    (QEMU's hw/i386/pc_q35.c: it begins at 2 GiB where there is more memory than 2.75 GiB).
    """
    hole = 2 * GIB if ram_bytes >= 11 * GIB // 4 else 11 * GIB // 4
    return address if address < hole else address - 4 * GIB + hole


@contextlib.asynccontextmanager
async def booted(
    config: Config,
    template: Template,
    image: golden.Golden,
    progress: Progress,
    boot_s: float = BOOT_TIMEOUT_S,
) -> AsyncIterator[Agent]:
    """A cold boot of the golden image in the (empty) folder of `template`, until BuildKit answers.

    The VM ends with the block. Raises `InfrastructureError` when its agent does not answer within
    `boot_s` seconds, when BuildKit does not after that, and when QEMU ends.
    """
    disks = template.disks
    labels = {disk.kind: disk.label for disk in runner_disks().values()}
    await scratch.overlay(disks.root, image.disk, "raw")
    await scratch.format_scratch(
        disks.scratch,
        label=labels["scratch"],
        disk_bytes=template.shape.disk_bytes,
        filesystem_bytes=template.shape.filesystem_bytes,
    )
    command = argv.template(
        config.vm.qemu,
        template.shape.hardware,
        ram=template.ram,
        disks=disks,
        boot=template.boot,
        directory=template.path,
    )
    async with _running(command, template.path, boot_s + AFTER_BOOT_S) as process:
        progress("booting the golden image")
        async with agent(template.path / "agent.sock") as guest:
            await _answers(guest, process, template.path, boot_s)
            progress("the guest is up; waiting for BuildKit to answer")
            await guest.call("wait_buildkit", {"timeout_s": 120}, timeout_s=150)
            yield guest


@contextlib.asynccontextmanager
async def _running(command: list[str], directory: Path, most_s: float) -> AsyncIterator[ProcessId]:
    """QEMU for as long as the block runs and no longer, nor longer than `most_s` seconds.

    An `InfrastructureError` in the block says so instead when QEMU's end is what it comes from.
    """
    watched = ["timeout", "--foreground", "--signal=KILL", f"{most_s:.0f}s", *command]
    process = await spawn(watched, errors=directory / "qemu.log", answers=directory / "qmp.sock")
    try:
        yield process
    except InfrastructureError:
        if process.alive():
            raise
        raise InfrastructureError(f"QEMU ended: {_last_lines(directory / 'qemu.log', 1)}") from None
    finally:
        await end(process)


async def _answers(guest: Agent, process: ProcessId, directory: Path, boot_s: float) -> None:
    """Wait for the agent's first answer; the channel swallows what is sent before it is open."""
    deadline = time.monotonic() + boot_s
    while time.monotonic() < deadline and process.alive():
        with contextlib.suppress(InfrastructureError):
            await guest.call("hello", timeout_s=2)
            return
        await asyncio.sleep(0.1)
    raise InfrastructureError(
        f"the golden image did not come up within {boot_s:.0f} s; its console ends with: "
        + _last_lines(directory / "serial.log", 3)
    )


def _last_lines(path: Path, count: int) -> str:
    """Of a file that may not be there: QEMU opens its log of the console last."""
    text = path.read_text(errors="replace") if path.exists() else ""
    lines = text.strip().splitlines()[-count:]
    return " / ".join(line.strip() for line in lines) or "nothing"
