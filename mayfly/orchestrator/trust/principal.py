"""Who is asking, and what is proven about the pipeline that asks."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from mayfly.errors import Denied

_PULL_REF = re.compile(r"refs/(?:pull|merge-requests|pull-requests)/([0-9]{1,9})/.+")
"""Of Forgejo, Gitea and GitHub; of GitLab; of Bitbucket (Woodpecker's `server/forge/*`)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a credential proves about the builds that it may ask for. Empty is what it does not say.

    `repos` are patterns (see `covers`); a pipeline's credential has its one repo. `event` is push,
    tag, pull_request, cron, manual or another of Woodpecker's words; `branch` is where a push, cron
    or manual run is, never the base of a pull request. `vouched` is an operator's word, given when
    a static token or a certificate was made: trusted or not, whatever the event.
    """

    repos: tuple[str, ...]
    event: str = ""
    branch: str = ""
    default_branch: str = ""
    ref: str = ""
    commit: str = ""
    pull_request: int = 0
    fork: bool = False
    vouched: bool | None = None

    @property
    def repo(self) -> str:
        """The one repo that this is about; empty where it is about several."""
        return self.repos[0] if len(self.repos) == 1 and "*" not in self.repos[0] else ""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking.

    `lease` is empty for anyone but a lease's holder; `reads` is a build that may be read, and
    nothing else. With an `origin` it may ask for leases, and sees its own only. `pulls` is a repo
    whose images it may pull, and `pulls_slot` which of those that are not trusted. `builders` is
    the program that relays docker clients: it reads builders and asks for their leases. `since` is
    when the name was given to it, where names are given again: that of a token that was revoked.
    """

    name: str
    admin: bool = False
    lease: str = ""
    reads: str = ""
    origin: Origin | None = None
    pulls: str = ""
    pulls_slot: str = ""
    builders: bool = False
    since: datetime | None = None

    @property
    def key(self) -> str:
        """What tells it from all others, those among them that had its name before."""
        return f"{self.name}@{self.since.isoformat()}" if self.since else self.name

    def made(self, name: str, at: datetime) -> bool:
        """Whether this is who made what a principal called `name` made at `at`."""
        return name == self.name and (self.since is None or at >= self.since)

    def require_admin(self) -> None:
        """Raises `Denied` unless this is the administrator."""
        if not self.admin:
            raise Denied("this needs the admin token", hint="set MAYFLY_TOKEN")

    def require_builders(self) -> None:
        """Raises `Denied` unless this is the builders' program."""
        if not self.builders:
            raise Denied("a builder's leases are asked for by the program that serves it")

    def require_leasing(self) -> None:
        """Raises `Denied` unless this may ask for leases, of whatever repo."""
        if not self.admin and self.origin is None:
            raise Denied(
                "this token asks for no lease",
                hint="set MAYFLY_TOKEN to the admin token, a ticket, or one of `mayfly token`",
            )


Verify = Callable[[str, datetime], Awaitable[Principal | None]]
"""A verifier: None for a credential that is not of its kind; raises `Unauthenticated`."""


def covers(patterns: Iterable[str], repo: str) -> bool:
    """Whether one of the patterns is about the repo. Pure.

    In a pattern `*` stands for any characters of one part, and `**` as the last part for one or
    more parts: `team/*` covers team/app, `group/**` also group/sub/app, `**` every repo.
    """
    return any(_expression(pattern).fullmatch(repo) for pattern in patterns)


def pull_request_of(ref: str) -> int:
    """The number of the pull request whose ref this is; 0 for any other ref. Pure."""
    found = _PULL_REF.fullmatch(ref)
    return int(found[1]) if found else 0


def _expression(pattern: str) -> re.Pattern[str]:
    front, slash, last = pattern.rpartition("/")
    if last == "**":
        return re.compile(_parts(front + slash) + ".+")
    return re.compile(_parts(pattern))


def _parts(text: str) -> str:
    return "[^/]*".join(re.escape(piece) for piece in re.split(r"\*+", text))
