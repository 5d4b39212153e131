"""What `/token` answers a docker client: who may do what in the registry, and for how long.

| credential | what its token allows |
| --- | --- |
| the admin token | everything |
| whoever leases for a repo | pulling its images and what is shared; emptying its caches |
| a pull ticket | pulling its repo's images |
| a lease's holder | what the lease may do, until its deadline; gone with its runner |
| any of these at a runner's own door | the same, for whom that runner serves and for nobody else |
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from mayfly.config import Trust
from mayfly.errors import Unauthenticated
from mayfly.model import Lease
from mayfly.orchestrator import docker, states, views
from mayfly.orchestrator.trust import Principal, covers
from mayfly.orchestrator.trust.policy import emptiable, pullable
from mayfly.registry import grants
from mayfly.registry.tokens import REGISTRY_TOKEN_S, Signer
from mayfly.wire import TokenJson


def answer(
    asked: docker.Asked,
    who: Principal,
    lease_of: Callable[[str], Lease],
    signer: Signer,
    trust: Trust,
    now: datetime,
) -> TokenJson:
    """A token for as much of what was asked as `who` is allowed.

    `lease_of` finds a lease by its id. Raises `Unauthenticated` for a principal that gets none
    there, and for a lease that has no runner now; and what `lease_of` raises.
    """
    end = now + timedelta(seconds=REGISTRY_TOKEN_S)
    if who.lease or asked.runner:
        lease = lease_of(who.lease or asked.runner.partition("-")[0])
        if not who.lease and not (lease.runner == asked.runner and serves(lease, who)):
            raise Unauthenticated("this token opens nothing at this runner's door")
        if not states.is_ready(lease) or lease.deadline is None:
            raise Unauthenticated(f"lease {lease.id} has no runner now")
        end = min(end, lease.deadline)
        access = grants.intersect(asked.scopes, granted(lease))
        token = signer.runner_token(lease.id, lease.attempt, access, deadline=end, now=now)
    elif who.admin or who.origin is not None or who.pulls:
        allowed = grants.EVERYTHING if who.admin else pullable(who, asked.scopes, trust)
        access = grants.intersect(asked.scopes, allowed) + emptiable(who, asked.scopes, trust)
        token = signer.registry_token(who.name, access, now=now)
    else:
        raise Unauthenticated("this token opens nothing in the registry")
    life = max(docker.MIN_LIFE_S, int((end - now).total_seconds()))
    return {
        "token": token,
        "access_token": token,
        "expires_in": life,
        "issued_at": views.time(now),
    }


def granted(lease: Lease) -> tuple[grants.Access, ...]:
    """What the lease itself may do."""
    return grants.for_lease(lease.request.repo, lease.terms.slot)


def serves(lease: Lease, who: Principal) -> bool:
    """Whether who logs in at the door of the lease's runner may do there what the lease may: the
    administrator, whoever it was granted to, and who is trusted with its repo anyway.
    """
    if who.admin:
        return True
    if who.origin is None:
        return False
    trusted = who.origin.vouched is True and covers(who.origin.repos, lease.request.repo)
    return trusted or who.made(lease.terms.principal, lease.created_at)
