"""How a build ended: judged by structure, kept as data, merged into the user's metadata file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mayfly.build.progress import Ran
from mayfly.errors import (
    InfrastructureError,
    MayflyError,
    NotPublished,
    UsageError,
    from_code,
)
from mayfly.model import OUTCOME_EXIT, Outcome
from mayfly.wire import LeaseJson

DIGEST = "containerimage.digest"
BEGIN_S = 3.0
"""What BuildKit gives a build to begin (its control/gateway/gateway.go). Where machine and VM have
little time to run, that is too short for the first build after a VM woke, and not for the next."""
AGAIN = "connecting again to the same VM, where finished steps are CACHED"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one runner did for the build. `error` says what BuildKit has not said already.

    `lost`: the way to the runner's BuildKit broke or never came about, or BuildKit never began the
    build (`stalled`). `timings_s` is empty when buildx did not run. `reconnects` counts the
    connections before the last one.
    """

    size: str
    outcome: Outcome
    digest: str = ""
    timings_s: Mapping[str, float] = field(default_factory=dict)
    error: MayflyError | None = None
    lost: bool = False
    stalled: bool = False
    reconnects: int = 0

    @property
    def opened(self) -> bool:
        """Whether buildx ran: there was a connection."""
        return "build" in self.timings_s


@dataclass(frozen=True, slots=True)
class Result:
    """How a build ended. `attempts` has at least one entry; the last one counts.

    `reason` is the orchestrator's, where it has one; `kept_until` is until when the last runner
    stays to be looked into, empty when it does not.
    """

    build: str
    outcome: Outcome
    attempts: tuple[Attempt, ...]
    reason: str = ""
    kept_until: str = ""

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]

    @property
    def error(self) -> MayflyError | None:
        """What is left to say; None where BuildKit has said it, or all is well."""
        if self.outcome is self.last.outcome:
            return self.last.error
        return ended(self.build, self.outcome, self.reason)

    @property
    def exit_status(self) -> int:
        """What the process ends with; a lost runner or client counts as infrastructure."""
        status = OUTCOME_EXIT[self.outcome]
        return InfrastructureError.exit_status if status is None else status


def ended(build: str, outcome: Outcome, reason: str) -> MayflyError:
    """How the orchestrator says that a build ended, as the error that has its exit status."""
    message = f"build {build} ended as {outcome}: {reason or 'no reason was given'}"
    if OUTCOME_EXIT[outcome] is None:
        return InfrastructureError(message, hint="build again")
    return from_code(outcome, message)


def attempt(
    view: LeaseJson,
    ran: Ran,
    metadata: Path,
    *,
    alive: bool,
    connect_s: float,
    unreadable: str = "",
) -> Attempt:
    """What a buildx that ended amounts to. Times are those of the lease (`queue`, `ready`), of
    SSH and forwarding (`connect`), and of buildx: `push` is what BuildKit's log says of pushing
    the image's layers and manifests, `build` all the rest, context and cache included.
    """
    outcome, error = judge(ran, alive=alive, unreadable=unreadable)
    stood = ran.status != 0 and alive and stalled(ran)
    push_s = min(ran.timeline.push_s, ran.seconds)
    times = {
        "queue": view["timings_s"].get("queue", 0.0),
        "ready": view["timings_s"].get("ready", 0.0),
        "connect": connect_s,
        "build": ran.seconds - push_s,
        "push": push_s,
    }
    return Attempt(
        size=view["size"]["name"],
        outcome=outcome,
        digest=digest_in(read_metadata(metadata)) if ran.status == 0 else "",
        timings_s={name: round(seconds, 3) for name, seconds in times.items()},
        error=error,
        lost=ran.status != 0 and (not alive or stood),
        stalled=stood,
    )


def half_written(attempt: Attempt) -> Attempt:
    """A lost connection of a build whose result goes to standard output: once only."""
    error = InfrastructureError(
        "the connection to the runner was lost, and a part of the result may have been written",
        hint="build again, or write to a file: -o type=…,dest=FILE",
    )
    return replace(attempt, error=error)


def stalled(ran: Ran) -> bool:
    """Whether buildx gave up, no sooner than BuildKit does, on a build that never began. What is
    wrong with the caller's own words buildx says at once.
    """
    return ran.status > 0 and not ran.timeline.began and ran.seconds >= BEGIN_S


def judge(ran: Ran, *, alive: bool, unreadable: str = "") -> tuple[Outcome, MayflyError | None]:
    """The outcome of a buildx that ended, and what BuildKit has not said about it already.

    From its exit status, from whether the runner's BuildKit still answers (`alive`), from which
    step of the log failed, and from whether our registry can give what that step wanted
    (`unreadable` names what it cannot); never from the text of a message.
    """
    if ran.status == 0:
        return Outcome.SUCCEEDED, None
    if not alive or ran.status < 0:
        return Outcome.INFRASTRUCTURE, InfrastructureError(
            "the connection to the runner's BuildKit was lost", hint="build again"
        )
    if stalled(ran):
        return Outcome.INFRASTRUCTURE, InfrastructureError(
            "the runner's BuildKit did not begin the build in time",
            hint="its machine has too much to do: see `mayfly status`, and build again",
        )
    if ran.timeline.push_failed:
        return Outcome.NOT_PUBLISHED, NotPublished(
            "the image was built and could not be pushed",
            hint="BuildKit says why above; mend that and build again",
        )
    if unreadable:
        return Outcome.INFRASTRUCTURE, InfrastructureError(
            f"{unreadable} cannot be read: the registry or its bucket does not answer",
            hint="see `mayfly status`, and build again",
        )
    return Outcome.FAILED, None


def digest_in(metadata: Mapping[str, Any]) -> str:
    """The digest of the image that was made; empty when there is none, or more than one.

    buildx's metadata has it at the top for `build`, and under each target's name for `bake`.
    """
    entries = [metadata, *(entry for entry in metadata.values() if isinstance(entry, dict))]
    found = {str(entry[DIGEST]) for entry in entries if DIGEST in entry}
    return found.pop() if len(found) == 1 else ""


def read_metadata(path: Path) -> dict[str, Any]:
    """What buildx wrote to its metadata file; empty when there is none, as after a failure."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def merge_metadata(path: Path, result: Result) -> None:
    """Add the key `mayfly` to buildx's metadata file. Raises `UsageError` when that fails."""
    ours = {
        "build": result.build,
        "size": result.last.size,
        "attempts": [{"size": a.size, "outcome": str(a.outcome)} for a in result.attempts],
        "reconnects": result.last.reconnects,
        "timings_s": dict(result.last.timings_s),
    }
    content = read_metadata(path) | {"mayfly": ours}
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"--metadata-file {path} cannot be written: {error.strerror}") from None
