"""`mayfly up`, `down`, `status` and `doctor`: Mayfly on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mayfly.cli.output import print_json, print_table, show

if TYPE_CHECKING:
    from mayfly.wire import LeaseJson

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def up(
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when everything answers; keep it running.")
    ] = False,
) -> None:
    """Start Mayfly on this machine (as root) and keep it running.

    Starts the object store, registry, host, edge and orchestrator, and starts again what
    dies. Without --detach it stays in the foreground until Ctrl-C.

    \b
    Examples:
        mayfly up --detach
        mayfly status
    """
    from mayfly import config, stack
    from mayfly.install.places import Places
    from mayfly.install.record import refuse

    found = config.load()
    refuse(Places().record, found.state, "systemctl start mayfly.target")
    stack.up(found, detach, show)


def down(
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove images, caches, golden images and keys.")
    ] = False,
) -> None:
    """Stop Mayfly on this machine; running builds are ended.

    What it keeps on disk stays, and the next `mayfly up` goes on from there, unless --purge
    says to leave nothing.

    \b
    Examples:
        mayfly down
        mayfly down --purge
    """
    from mayfly import config, stack
    from mayfly.install.places import Places
    from mayfly.install.record import refuse

    found = config.load()
    refuse(Places().record, found.state, "systemctl stop mayfly.target")
    stack.down(found, purge, show)


def status(as_json: AsJson = False) -> None:
    """Show sizes, room in the pool, leases and the last builds.

    \b
    Examples:
        mayfly status
        mayfly status --json
    """
    from mayfly.cli.farm import ask

    now = ask(lambda farm: farm.status())
    if as_json:
        print_json(now)
        return
    golden, pool = now["golden"], now["pool"]
    gib = 1024**3
    print(f"Mayfly {now['version']}, {now['accelerator']}, registry {now['registry']}")
    print(f"golden image  {golden['name'] if golden else 'none: run `mayfly golden build`'}")
    print(
        f"pool          {pool['memory_used_bytes'] / gib:.1f} of "
        f"{pool['memory_bytes'] / gib:.1f} GiB, {pool['cpus_used']} of {pool['cpus']} vCPUs, "
        f"{pool['disk_used_bytes'] / gib:.0f} of {pool['disk_bytes'] / gib:.0f} GiB disk, "
        f"{pool['queued']} waiting"
    )
    sizes = ", ".join(size["name"] for size in pool["limits"]["sizes"])
    print(f"sizes         {sizes} (default {pool['limits']['default']})")
    if refused := pool["limits"]["refused"]:
        print(f"too large     {', '.join(refused)}")
    print()
    print_table(
        ("LEASE", "REPO", "STATE", "SIZE"),
        [(one["id"], one["repo"], state(one), one["size"]["name"]) for one in now["leases"]],
        "no leases",
    )
    print()
    print_table(
        ("BUILD", "REPO", "OUTCOME", "DIGEST"),
        [
            (one["id"], one["repo"], one["outcome"] or one["state"], (one["digest"] or "-")[:19])
            for one in now["builds"][:10]
        ],
        "no builds yet: mayfly build .",
    )


def state(lease: LeaseJson) -> str:
    """A lease's state, in a word or a few."""
    return f"kept until {lease['kept_until']}" if lease["state"] == "kept" else lease["state"]


def doctor(as_json: AsJson = False) -> int:
    """Say what is wrong with this machine, how to mend it, and how fast builds will be.

    Speed is measured in a small guest: half a minute the first time without KVM, kept
    afterwards. Ends with status 21 when something is wrong that builds cannot do without.

    \b
    Examples:
        mayfly doctor
        mayfly doctor --json
    """
    from mayfly import config
    from mayfly import doctor as doctoring
    from mayfly.errors import MachineUnfit

    checks = doctoring.checks(config.load())
    if as_json:
        print_json([check.as_json() for check in checks])
    else:
        for check in checks:
            print(f"{check.state:4}  {check.name}: {check.found}")
            if check.mend:
                print(f"      {check.mend}")
    failed = any(check.state is doctoring.State.FAIL for check in checks)
    return MachineUnfit.exit_status if failed else 0
