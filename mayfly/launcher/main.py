"""`buildkit-launcher`, a Woodpecker plugin: settings in, a build by `flow.py`, an exit status out.

It keeps nothing. What is wrong is said before any VM is asked for, all of it at once. No secret of
the settings appears in what it prints or in the build's log. A failure of the farm's own (exit
status 20) is tried once more, from the start: Woodpecker retries nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mayfly.errors import Cancelled, Denied, InfrastructureError, MayflyError, UsageError, together

if TYPE_CHECKING:
    from mayfly.build.result import Result
    from mayfly.client import Client
    from mayfly.config import Config
    from mayfly.flow import Request
    from mayfly.launcher.plan import Plan
    from mayfly.launcher.will import Will

NAME = "buildkit-launcher"
PAUSE_S = 3.0
"""Before the second try: what is being restarted has come back by then."""
LARGEST_BYTES = 1024 * 1024
"""Of a file that settings name, this much is read."""

Say = Callable[[str], None]


def main() -> None:
    """The program. Raises SystemExit with the documented exit status."""
    raise SystemExit(run(os.environ))


def run(environ: Mapping[str, str]) -> int:
    """Build as the settings in `environ` say; the exit status of the outcome.

    Every error is one line, or one for each fault; nothing raises.
    """
    # As a container's first process we would not even notice these by default.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    hide: Callable[[str], str] = lambda text: ""  # noqa: E731 - until we know what to hide
    try:
        from mayfly.build.mask import Mask

        made = planned(environ)
        hide = Mask(made.secrets).text
        return _run(made, lambda line: _print(hide(line)))
    except MayflyError as error:
        for each in (error, *error.also):
            for line in str(each).splitlines():
                _print(hide(line))
        return error.exit_status
    except KeyboardInterrupt:
        return Cancelled.exit_status
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        _print(f"internal error ({type(error).__name__} at {where}) - report it with this line")
        return MayflyError.exit_status


def planned(environ: Mapping[str, str]) -> Plan:
    """What the settings in `environ` amount to, with the files that they name. Never raises."""
    from mayfly.launcher import plan, values

    environ = {**_env_file(environ), **environ}
    given = values.given(environ)
    files = {name: _read(name) for name in plan.named(given)}
    return plan.plan(given, environ, files, datetime.now(UTC))


def _run(made: Plan, say: Say) -> int:
    for remark in made.remarks:
        say(remark)
    request, config, api = _prepared(made)
    from mayfly.launcher.will import standing_by

    with standing_by(api.url, api.tls) as will:
        result = asyncio.run(_build(request, config, api, will, say))
    if result.error is not None:
        raise result.error
    if result.exit_status == 0:
        for line in _summary(result, request):
            say(line)
    return result.exit_status


def _prepared(made: Plan) -> tuple[Request, Config, Client]:
    """The build, its configuration and the farm. Raises every fault there is, at once.

    The farm's client (its certificates take time to read) is made while another process evaluates
    the build spec.
    """
    from concurrent.futures import ThreadPoolExecutor

    from mayfly import config, flow
    from mayfly.model import BuildSpec

    found: list[MayflyError] = [UsageError(fault) for fault in made.faults]
    request: Request | None = None
    api: Client | None = None
    settings = None
    try:
        settings = config.load(made.farm)
    except MayflyError as error:
        found.append(error)
        settings = config.Config()
    with ThreadPoolExecutor(1) as beside:
        making = beside.submit(_client, made, settings)
        try:
            request = flow.prepare(made.argv, settings, made.environ, Path.cwd())
        except MayflyError as error:
            found += [error, *error.also]
        try:
            api = making.result()
        except MayflyError as error:
            found.append(error)
    if found or request is None or api is None:
        raise together(found)
    if made.declares:
        declared = asdict(request.spec or BuildSpec()) | dict(made.declares)
        request = replace(request, spec=BuildSpec(**declared))
    request = replace(request, supersede=made.supersede, secrets=made.secrets)
    return replace(request, proxies=made.proxies), settings, api


def _client(made: Plan, settings: Config) -> Client:
    """The farm's client. Raises `UsageError` and `Denied`."""
    from mayfly import client

    with _certificate(made) as farm:
        try:
            return client.from_environment(settings, farm)
        except Denied as error:
            raise Denied(
                error.message,
                hint="name the farm by the settings `url` and `token: {from_secret: mayfly_token}`",
            ) from None


@contextmanager
def _certificate(made: Plan) -> Iterator[dict[str, str]]:
    """The variables that name the farm, with a file for a CA that came as text."""
    if "-----BEGIN" not in made.ca:
        yield {**made.farm, **({"MAYFLY_CA": made.ca} if made.ca else {})}
        return
    with tempfile.NamedTemporaryFile("w", prefix="mayfly-ca-", suffix=".crt") as file:
        file.write(made.ca)
        file.flush()
        yield {**made.farm, "MAYFLY_CA": file.name}


async def _build(request: Request, config: Config, api: Client, will: Will, say: Say) -> Result:
    """The build, and once more when the farm was at fault."""
    from mayfly import flow
    from mayfly.build.stop import signals, stoppable

    async with api:
        api.on_lease = will.name
        try:
            result = await flow.build(request, api, config, say)
            failed = result.error if result.exit_status == InfrastructureError.exit_status else None
        except InfrastructureError as error:
            failed = error
        if failed is None:
            return result
        say(f"{failed}")
        say("that is the farm's fault: trying once more, from the start")
        async with stoppable() as stop, signals(stop, lambda: None):
            await asyncio.sleep(PAUSE_S)
        return await flow.build(request, api, config, say)


def _summary(result: Result, request: Request) -> Iterable[str]:
    seconds = sum(result.last.timings_s.values())
    yield f"build {result.build} succeeded in {seconds:.1f} s, size {result.last.size}"
    for tag in request.args.pushed:
        yield f"pushed {tag}{'@' if result.last.digest else ''}{result.last.digest}"
    if not request.args.kept:
        yield "nothing was pushed: the result stays in the farm's build cache"
    if result.reason:
        yield f"warning: {result.reason}"


def _print(line: str) -> None:
    if line:
        with suppress(OSError, ValueError):  # nobody reads: no fault of the build's
            print(f"{NAME}: {line}", file=sys.stderr, flush=True)


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _read(name: str) -> str | None:
    """A file's text; None when there is none to read."""
    try:
        with Path(name).open("rb") as file:
            return file.read(LARGEST_BYTES).decode(errors="surrogateescape")
    except (OSError, ValueError):
        return None


def _env_file(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The variables of the setting `env_file`; none where there is no such file."""
    from mayfly.launcher.values import variables

    name = environ.get("PLUGIN_ENV_FILE", "")
    return variables(_read(name) or "") if name else {}
