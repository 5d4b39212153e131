"""What a token allows in the registry. Pure: names and actions in, names and actions out.

A *grant* is an `Access` whose name may be a pattern: `NAME` (that repository), `NAME/*` (those
whose names have exactly one part more), `NAME/START*` (of those, the ones that begin so) or `*`
(every repository). A *request* is an `Access` whose
name is taken literally, so that asking for a pattern gets nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mayfly.errors import UsageError

REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
"""The distribution specification's grammar of a repository name."""

LONGEST_REPO, LONGEST_NAME = 200, 255
"""Characters in a lease's repo, and in a repository's whole name."""

RESERVED = frozenset({"base", "mayfly", "pr"})
"""First parts of `images/…` that are not anybody's repo."""

TRUSTED, UNTRUSTED = "trusted", "untrusted"
"""The zones of the layer cache: who may write where is what a build's trust is about."""

PULL, PUSH, DELETE = "pull", "push", "delete"


@dataclass(frozen=True, slots=True)
class Access:
    """Actions on one name. `type` is `repository`, or `registry` (whose one name is `catalog`)."""

    name: str
    actions: frozenset[str]
    type: str = "repository"

    def claim(self) -> dict[str, Any]:
        """As it stands in a token's `access` list; actions sorted."""
        return {"type": self.type, "name": self.name, "actions": sorted(self.actions)}

    def __str__(self) -> str:
        """As it stands in a `scope`: `repository:NAME:pull,push`."""
        return f"{self.type}:{self.name}:{','.join(sorted(self.actions))}"


CATALOG = Access("catalog", frozenset({"*"}), "registry")
"""The list of all repositories; only an administrator has it."""

OWN_CATALOG = Access("catalog", frozenset({"own"}), "registry")
"""The list of those repositories that the same token may pull."""

EVERYTHING = (Access("*", frozenset({PULL, PUSH, DELETE})), CATALOG)
"""What the admin token grants."""


SHARED = tuple(Access(f"images/{name}/*", frozenset({PULL})) for name in ("base", "mayfly"))
"""What everybody may pull who may pull any image."""


def is_repository(name: str) -> bool:
    """Whether `name` is a well-formed repository name (no pattern)."""
    return len(name) <= LONGEST_NAME and REPOSITORY.fullmatch(name) is not None


def check_repo(repo: str) -> str:
    """`repo` itself when a lease may be for it; raises `UsageError` when not.

    Wrong are: what is not lower-case path syntax, more than 200 characters, and a first part that
    Mayfly keeps for itself (`base`, `mayfly`, `pr`), which would share names with `images/base/…`.
    """
    if len(repo) > LONGEST_REPO or REPOSITORY.fullmatch(repo) is None:
        raise UsageError(
            f"repo {repo[:LONGEST_REPO]!r} is not a repository name",
            hint="use lower-case letters, digits and . _ - in parts separated by /, as in team/app",
        )
    if repo.partition("/")[0] in RESERVED:
        raise UsageError(
            f"repo {repo!r}: names below {repo.partition('/')[0]!r} are Mayfly's own",
            hint="name the owner first, as in team/app",
        )
    return repo


def for_lease(repo: str, slot: str = "") -> tuple[Access, ...]:
    """What a lease of `repo` may do: a trusted one, or with a `slot` one that is not.

    Raises `UsageError` as `check_repo` does. What is not trusted reads what the repo's trusted
    builds made, and writes `images/pr/<repo>/<slot>` and `cache/untrusted/<repo>/<slot>__…`, which
    nobody else writes or reads. No two repos share a name that either may write: of `images/…` a
    repo `OWNER/NAME` has its own name and one part below it, `OWNER` alone only its own name (below
    it are the owner's repos), and a longer repo only what is one part below it (its own name is its
    parent's to write).
    """
    check_repo(repo)
    both, pull, depth = frozenset({PULL, PUSH}), frozenset({PULL}), repo.count("/") + 1
    mine = pull if slot else both
    own = (Access(f"images/{repo}", mine),) if depth <= 2 else ()
    below = (Access(f"images/{repo}/*", mine),) if depth >= 2 else ()
    apart = (
        Access(f"images/pr/{repo}/{slot}", both),
        Access(f"cache/untrusted/{repo}/{slot}__*", both),
    )
    return (
        *own,
        *below,
        Access("images/base/*", pull),
        Access(f"cache/trusted/{repo}/*", mine),
        *(apart if slot else ()),
    )


def for_pulling(repo: str, slot: str = "") -> tuple[Access, ...]:
    """What may be pulled by whom builds of `repo` are for: its images, and what is shared.

    With a `slot` also the images of that slot. Raises `UsageError` as `check_repo` does.
    """
    pull = frozenset({PULL})
    images = [g for g in for_lease(repo, slot) if g.name.startswith("images/")]
    return (*(Access(g.name, pull) for g in images), *SHARED)


def caches(repo: str) -> Access:
    """What is asked for to list and empty the layer caches of `repo`: a request, never a grant."""
    return Access(f"caches/{repo}", frozenset({"list"}), "registry")


def caches_asked(requested: Iterable[Access]) -> tuple[str, ...]:
    """The repos whose caches are asked for so."""
    named = ((each.name.partition("/")[2], each) for each in requested)
    found = (repo for repo, each in named if each == caches(repo) and is_repository(repo))
    return tuple(dict.fromkeys(found))


def for_caches(repo: str, slot: str = "") -> tuple[Access, ...]:
    """What lists the layer caches of `repo` and empties them; with a `slot`, only that slot's.

    Raises `UsageError` as `check_repo` does.
    """
    check_repo(repo)
    pull, both = frozenset({PULL}), frozenset({PULL, DELETE})
    own = f"{slot}__*" if slot else "*"
    return (
        OWN_CATALOG,
        Access(f"cache/trusted/{repo}/*", pull if slot else both),
        Access(f"cache/untrusted/{repo}/{own}", both),
    )


def owner_of(image: str) -> str:
    """The repo that writes the repository `image` (`images/…`); empty where that is nobody's.

    It is the inverse of what `for_lease` grants a trusted lease.
    """
    front, _, name = image.partition("/")
    parts = name.split("/")
    if front != "images" or not is_repository(image) or parts[0] in RESERVED:
        return ""
    return name if len(parts) <= 2 else "/".join(parts[:-1])


def apart_of(image: str, slot: str) -> str:
    """The repo whose builds of that slot write `image` (`images/pr/…`); empty where none's do."""
    repo = image.removeprefix("images/pr/").removesuffix(f"/{slot}")
    return repo if slot and image == f"images/pr/{repo}/{slot}" and is_repository(image) else ""


def image_names(repo: str, slot: str = "") -> tuple[str, ...]:
    """Where a lease of `repo` may push images, for people: `NAME` stands for any one part."""
    writable = (grant.name for grant in for_lease(repo, slot) if PUSH in grant.actions)
    return tuple(name.replace("*", "NAME") for name in writable if name.startswith("images/"))


def may_be_named(repo: str, image: str) -> bool:
    """Whether a build of `repo` may push to the repository `image` on some terms."""
    apart = image.rpartition("/")[0] == f"images/pr/{repo}" and is_repository(image)
    return apart or allows(for_lease(repo), Access(image, frozenset({PUSH})))


def allows(granted: Iterable[Access], request: Access) -> bool:
    """Whether the grants together contain every action of `request`. No action: always."""
    return request.actions <= _actions(granted, request)


def intersect(requested: Iterable[Access], granted: Iterable[Access]) -> tuple[Access, ...]:
    """The part of `requested` that is granted, names literal, in the order asked.

    One entry a name; a name of which nothing is granted is left out.
    """
    granted = tuple(granted)
    merged: dict[tuple[str, str], frozenset[str]] = {}
    for item in requested:
        key = (item.type, item.name)
        merged[key] = merged.get(key, frozenset()) | (item.actions & _actions(granted, item))
    return tuple(Access(name, acts, kind) for (kind, name), acts in merged.items() if acts)


def _actions(granted: Iterable[Access], request: Access) -> frozenset[str]:
    if request.type == "repository" and not is_repository(request.name):
        return frozenset()
    fitting = (
        g.actions for g in granted if g.type == request.type and _covers(g.name, request.name)
    )
    return frozenset[str]().union(*fitting)


def _covers(pattern: str, name: str) -> bool:
    if pattern == "*" or pattern == name:
        return True
    if not pattern.endswith("*") or "/" not in pattern:
        return False
    folder, _, start = pattern[:-1].rpartition("/")
    above, _, last = name.rpartition("/")
    return above == folder and last.startswith(start)


def parse_scope(text: str) -> tuple[Access, ...]:
    """The requests in a `scope` parameter: `TYPE:NAME:ACTION[,ACTION]`, separated by blanks.

    A class in the type (`repository(plugin)`) is dropped; a name may contain colons. Raises
    `UsageError` for what has not this shape. An empty text asks for nothing.
    """
    return tuple(_parse_one(part) for part in text.split())


def _parse_one(part: str) -> Access:
    kind, _, rest = part.partition(":")
    name, _, actions = rest.rpartition(":")
    kind = re.sub(r"\([a-z0-9]+\)$", "", kind)
    if not re.fullmatch(r"[a-z0-9]+", kind) or not name:
        raise UsageError(f"scope {part[:200]!r} is not TYPE:NAME:ACTIONS")
    return Access(name, frozenset(filter(None, actions.split(","))), kind)


def from_claims(value: object) -> tuple[Access, ...]:
    """The `access` list of a verified token. Raises `ValueError` when it is not one."""
    if not isinstance(value, list):
        raise ValueError("access is not a list")
    return tuple(_from_claim(item) for item in value)


def _from_claim(item: object) -> Access:
    match item:
        case {"type": str(kind), "name": str(name), "actions": [*actions]}:
            return Access(name, frozenset(str(action) for action in actions), kind)
    raise ValueError("an entry of access is not {type, name, actions}")


def claims(access: Iterable[Access]) -> list[Mapping[str, Any]]:
    """`access` as it stands in a token."""
    return [item.claim() for item in access]
