"""On which terms a principal gets a lease. Pure: who asks, for what, and the policy.

What is proven always wins over what is claimed: of a request, only the repo is read, and only to
see that the principal may build it. The policy is the section `[trust]` of the configuration.

| who | trusted |
| --- | --- |
| the admin token | yes |
| a static token, a client certificate | as its operator said when it was made |
| push, cron, manual on the default branch, or one of `trust.branches` | yes |
| a tag or release whose commit was seen on such a branch | yes |
| pull requests, forks, other branches, other events | no |
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mayfly.config import Trust as Policy
from mayfly.errors import Denied, UsageError
from mayfly.model import LeaseRequest, Terms
from mayfly.orchestrator.trust.principal import Origin, Principal, covers
from mayfly.registry import grants

BY_COMMIT = frozenset({"tag", "release"})
"""Events that are on no branch: what counts is where their commit was seen."""

_LONGEST_SLUG, _DIGITS = 38, 16
"""Characters of a slot's readable part, and of the digest behind it: whoever names a branch looks
for one whose digest is another's."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The terms, and the request as it counts: with what is proven in place of what is claimed.

    `budget_min` is the most minutes that the build may take; 0: as anybody else.
    """

    request: LeaseRequest
    trusted: bool
    terms: Terms
    budget_min: float = 0.0


def decide(
    who: Principal, asked: LeaseRequest, policy: Policy, largest: str, *, seen: bool = False
) -> Decision:
    """The terms for what `who` asks.

    `largest` is the name of the largest size that is not trusted with more; `seen` whether the
    proven commit was seen on a trusted branch. Raises `Denied` for a principal that may not build
    this repo, or push where it means to.
    """
    if who.admin:
        why = "the farm's administrator asks"
        return _pushing(Decision(asked, True, Terms(principal=who.name, why=why)))
    who.require_leasing()
    assert who.origin is not None  # noqa: S101 - it may lease
    origin = who.origin
    if not covers(origin.repos, asked.repo):
        raise Denied(
            f"{who.name} may not build {asked.repo}",
            hint=f"it may build {', '.join(origin.repos)}: see --mayfly-repo",
        )
    trusted, why = standing(origin, policy, seen=seen)
    request = replace(
        asked,
        event=origin.event or asked.event,
        ref=origin.ref or origin.branch or asked.ref,
    )
    terms = Terms(
        principal=who.name,
        why=why,
        slot="" if trusted else slot(who),
        pull_request=origin.pull_request,
        alone=not trusted and origin.vouched is None and policy.one_at_a_time,
        largest="" if trusted else largest,
    )
    budget_min = 0.0 if trusted else policy.untrusted_budget_min
    return _pushing(Decision(request, trusted, terms, budget_min))


def standing(origin: Origin, policy: Policy, *, seen: bool = False) -> tuple[bool, str]:
    """Whether builds of this origin are trusted, and why, for people."""
    if origin.vouched is not None:
        return origin.vouched, "its token was made trusted" if origin.vouched else (
            "its token was not made trusted"
        )
    if origin.pull_request or origin.event.startswith("pull_request"):
        return False, "it builds a pull request"
    if origin.fork:
        return False, "it comes from a fork"
    if origin.event not in policy.events:
        return False, f"its event is {origin.event or 'not known'}"
    if origin.event in BY_COMMIT:
        if seen and origin.commit:
            return True, f"the commit of this {origin.event} was seen on a trusted branch"
        return False, f"the commit of this {origin.event} was not seen on a trusted branch"
    if on_trusted_branch(origin, policy):
        return True, f"{origin.event} on branch {origin.branch}"
    where = f"branch {origin.branch}" if origin.branch else "no branch that is known"
    return False, f"it is on {where}, which is not the default branch"


def on_trusted_branch(origin: Origin, policy: Policy) -> bool:
    """Whether it is on the default branch, or on one of the policy's."""
    branch = origin.branch
    if not branch:
        return False
    default = bool(origin.default_branch) and branch == origin.default_branch
    return default or any(fnmatch.fnmatchcase(branch, each) for each in policy.branches)


def proves_commit(origin: Origin, policy: Policy) -> bool:
    """Whether this shows that its commit is on a trusted branch, for a tag that comes later."""
    if not (origin.repo and origin.commit) or origin.event in BY_COMMIT:
        return False
    return origin.vouched is None and standing(origin, policy)[0]


def slot(who: Principal) -> str:
    """The one part of names below which a principal writes that is not trusted.

    Pull requests have their number; what else there is has its kind in front, so that no branch or
    token is ever a pull request's.
    """
    origin = who.origin
    if origin is None or origin.vouched is not None:
        kind, _, name = who.name.partition(":")
        return f"{kind}-{_slug(name)}"
    if origin.pull_request:
        return str(origin.pull_request)
    if origin.branch and not origin.event.startswith("pull_request"):
        return f"branch-{_slug(origin.branch)}"
    return f"ref-{_slug(origin.ref or origin.commit or origin.event or who.name)}"


def pullable(
    who: Principal, scopes: Iterable[grants.Access], policy: Policy
) -> tuple[grants.Access, ...]:
    """What a principal without a lease may pull, of what is asked for: the images of its repos,
    what its own builds have put beside them when those are not trusted, and what is shared.
    """
    if who.pulls:
        return grants.for_pulling(who.pulls, who.pulls_slot)
    if who.origin is None:
        return ()
    at = _at(who, policy)
    names = [scope.name for scope in scopes]
    repos = {grants.owner_of(name) or grants.apart_of(name, at) for name in names} - {""}
    mine = [repo for repo in sorted(repos) if covers(who.origin.repos, repo)]
    return (*grants.SHARED, *(g for repo in mine for g in grants.for_pulling(repo, at)))


def emptiable(
    who: Principal, scopes: Iterable[grants.Access], policy: Policy
) -> tuple[grants.Access, ...]:
    """What it takes for the layer caches that are asked for, as far as the principal builds those
    repos: it lists what its builds read, and empties what they write.
    """
    asked = grants.caches_asked(scopes)
    if who.origin is not None:
        asked = tuple(repo for repo in asked if covers(who.origin.repos, repo))
    elif not who.admin:
        return ()
    at = _at(who, policy)
    return tuple(grant for repo in asked for grant in grants.for_caches(repo, at))


def _at(who: Principal, policy: Policy) -> str:
    """The slot of a principal that is not trusted; empty for one that is."""
    trusted = who.admin or (who.origin is not None and standing(who.origin, policy)[0])
    return "" if trusted else slot(who)


def _slug(text: str) -> str:
    """A piece of a repository's name: readable, and never another text's. A text that is such a
    piece already stands for itself; all others have a digest behind a dot, which no such text has.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST_SLUG].strip("-")
    if plain == text:
        return plain
    return f"{plain or 'x'}.{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"


def _pushing(decision: Decision) -> Decision:
    """The decision, where it allows what the request means to push. Raises `Denied`."""
    repo, at = decision.request.repo, decision.terms.slot
    try:
        granted = grants.for_lease(repo, at)
    except UsageError as error:
        raise Denied(error.message, hint=error.hint) from None
    for name in decision.request.pushes:
        if not grants.allows(granted, grants.Access(name, frozenset({grants.PUSH}))):
            standing = "" if decision.trusted else f" that is not trusted ({decision.terms.why})"
            raise Denied(
                f"a build of repo {repo}{standing} may not push to {name}",
                hint=f"use -t {' or '.join(grants.image_names(repo, at))}",
            )
    return decision
