"""`python -m mayfly.builders`: serve builders until SIGTERM, which gives their runners back.

Killed, it takes its SSH keys with it: what was connected is cut, and the runners are reaped when
their leases have been silent for `lease.grace_s`, or as soon as somebody connects to their builder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys

import structlog

from mayfly import client
from mayfly.builders.service import serve
from mayfly.client import Client
from mayfly.config import Config, load
from mayfly.errors import InfrastructureError, MayflyError


async def _run(config: Config) -> None:
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    token = _token(config)
    status = config.run / "builders" / ".status"
    status.unlink(missing_ok=True)
    with contextlib.suppress(asyncio.CancelledError):
        async with Client(client.local_url(config), token, config.state / "ca" / "ca.crt") as farm:
            server = await asyncio.start_unix_server(_alive, status)
            async with server:
                await serve(config, farm)


async def _alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers any line, so that whoever keeps this program running sees that it does."""
    with contextlib.suppress(OSError, ValueError):
        if await reader.readline():
            writer.write(json.dumps({"ok": True}).encode() + b"\n")
            await writer.drain()
    writer.close()


def _token(config: Config) -> str:
    path = config.state / "keys" / "builders.token"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise InfrastructureError(
            f"{path} cannot be read: {error.strerror}", hint="`mayfly up` makes it"
        ) from None


def main() -> int:
    """One line on stderr and the error's exit status when it cannot serve."""
    # Tracebacks without the values of variables: tokens are among them.
    plain = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[*structlog.get_config()["processors"][:-1], plain],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        asyncio.run(_run(load()))
    except OSError as error:
        print(f"mayfly-builders: {error}", file=sys.stderr)
        return InfrastructureError.exit_status
    except MayflyError as error:
        print(f"mayfly-builders: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
