"""`python -m mayfly.host`: started by `mayfly up` as root, or by a unit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

from mayfly.config import Config, load
from mayfly.errors import MachineUnfit, MayflyError
from mayfly.host import machine
from mayfly.host.server import Host, serve
from mayfly.users import EDGE, ORCHESTRATOR


async def _run(config: Config) -> None:
    if os.geteuid() != 0:
        raise MachineUnfit(
            "the host program makes network namespaces and needs root",
            hint="start it with `mayfly up` as root; running without privileges is not supported",
        )
    for name in ("vms", "templates", "run"):
        (config.state / name).mkdir(parents=True, exist_ok=True)
    host = Host(config, await machine.inspect(config))
    await host.start()
    async with asyncio.TaskGroup() as servers:
        tasks = [
            servers.create_task(
                serve(config.run / "host.sock", uid=ORCHESTRATOR, operations=host.control)
            ),
            servers.create_task(serve(config.run / "dial.sock", uid=EDGE, operations=host.dial)),
            servers.create_task(host.mind()),
        ]

        def stop() -> None:
            for task in tasks:
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)


def main() -> int:
    """Serve until SIGTERM. VMs live on when it ends; `mayfly.host.runners.teardown` ends them."""
    try:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(_run(load()))
    except MayflyError as error:
        print(f"mayfly-host: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
