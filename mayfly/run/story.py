"""`mayfly run`, from a request to an exit status: in an image, or on the runner's own system."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mayfly.build.holding import Api, Show
from mayfly.build.result import Result
from mayfly.config import Config
from mayfly.errors import UsageError
from mayfly.model import Outcome
from mayfly.run import artifacts, inside
from mayfly.run.request import Run


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended. `status` is the command's own, None when it did not come to that; `unread`
    are images that could not be read.
    """

    result: Result
    status: int | None
    unread: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """The command's own status where the command is why it ended, else the outcome's."""
        own = self.result.outcome in (Outcome.SUCCEEDED, Outcome.FAILED)
        return self.status if own and self.status is not None else self.result.exit_status


async def run(
    wanted: Run, api: Api, config: Config, environ: Mapping[str, str], show: Show
) -> Ended:
    """Run the command to its end, and bring its artifacts back. Raises as `flow.build` does."""
    if not wanted.image:
        result, status = await inside.run(wanted, api, config, show)
        return Ended(result, status)
    from mayfly import flow  # what only a build needs takes longer to load than a small command
    from mayfly.run import image

    with image.prepared(wanted, config, environ) as (request, output):
        result = await flow.build(request, api, config, show)
        if output.status is not None and wanted.artifacts:
            with output.tar.open("rb") as tar:
                below = f"{image.OURS}/files"
                taken = artifacts.take(tar, wanted.artifacts, wanted.folder, below)
            artifacts.tell(taken, wanted.artifacts, show)
        return Ended(result, output.status, tuple(output.unread))


def forget_result(file: Path) -> None:
    """Remove what an earlier run has written there: a run that ends without a result has none.
    Raises `UsageError` when it stays.
    """
    try:
        if file.is_file() and not file.is_symlink():
            file.write_text("")
            with suppress(OSError):  # its folder may be closed to us: then it is empty
                file.unlink()
    except OSError as error:
        raise UsageError(f"--result {file} cannot be written: {error.strerror}") from None


def write_result(file: Path, ended: Ended) -> None:
    """What became of the run, as JSON. Raises `UsageError` when it cannot be written."""
    told = {
        "build": ended.result.build,
        "outcome": ended.result.outcome,
        "exit_status": ended.exit_status,
        "command_status": ended.status,
        "size": ended.result.last.size,
    }
    try:
        file.write_text(json.dumps(told, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"--result {file} cannot be written: {error.strerror}") from None
