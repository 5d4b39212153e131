"""Leases as the API shows them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import cast

from mayfly import __version__
from mayfly.config import Config
from mayfly.model import OUTCOME_EXIT, Attempt, Lease, Size
from mayfly.orchestrator import page, plan, states
from mayfly.orchestrator.limits import Limits
from mayfly.registry import grants
from mayfly.store.trust import Given
from mayfly.usage import Evidence, Need, needs
from mayfly.wire import (
    AskedJson,
    AttemptJson,
    BuildJson,
    GivenJson,
    GoldenJson,
    LeaseJson,
    PointJson,
    PoolJson,
    RunnerJson,
    SizeJson,
    StatusJson,
    StepJson,
    TermsJson,
    UsageJson,
)


def relay_url(config: Config) -> str:
    """Where the relay's WebSocket is, without the path that names the lease."""
    return f"wss://{config.registry_host}"


def asked(lease: Lease, token: str, page_token: str, config: Config) -> AskedJson:
    return {
        "id": lease.id,
        "token": token,
        "state": states.word(lease),
        "relay_url": relay_url(config),
        "expires_at": time(lease.expires_at),
        "page_url": page.address(config.url, lease.id, page_token),
    }


def lease(
    lease: Lease, config: Config, *, position: int | None = None, runner_token: str = ""
) -> LeaseJson:
    """`runner_token` is empty for a caller who may not reach the runner."""
    runner: RunnerJson | None = None
    if states.is_ready(lease) and runner_token:
        runner = {
            "name": lease.runner,
            "ssh_host_key": lease.ssh_host_key,
            "token": runner_token,
        }
    return {
        "id": lease.id,
        "repo": lease.request.repo,
        "state": states.word(lease),
        "desired": lease.desired,
        "observed": lease.observed,
        "operation": lease.operation,
        "attempt": lease.attempt,
        "size": size(lease.size),
        "queue_position": position,
        "created_at": time(lease.created_at),
        "expires_at": time(lease.expires_at),
        "ready_at": _maybe(lease.ready_at),
        "deadline": _maybe(lease.deadline),
        "ended_at": _maybe(lease.ended_at),
        "outcome": lease.outcome,
        "exit_code": OUTCOME_EXIT[lease.outcome] if lease.outcome else None,
        "reason": lease.reason,
        "timings_s": dict(lease.timings_s),
        "relay_url": relay_url(config),
        "runner": runner,
        "terms": terms(lease),
    }


def given(one: Given) -> GivenJson:
    """A static token, without what opens anything."""
    return {
        "name": one.name,
        "repos": list(one.repos),
        "trusted": one.trusted,
        "created_at": time(one.created_at),
        "expires_at": _maybe(one.expires_at),
    }


def terms(lease: Lease) -> TermsJson:
    """On which terms the lease was granted, and what follows for names."""
    over = lease.terms
    return {
        "principal": over.principal,
        "trusted": lease.trusted,
        "why": over.why,
        "slot": over.slot,
        "images": list(grants.image_names(lease.request.repo, over.slot)),
        "cache_to": grants.TRUSTED if lease.trusted else grants.UNTRUSTED,
        "cache_from": [grants.TRUSTED] if lease.trusted else [grants.UNTRUSTED, grants.TRUSTED],
        "largest": over.largest or None,
    }


def build(lease: Lease, config: Config) -> BuildJson:
    return {
        "id": lease.id,
        "repo": lease.request.repo,
        "ref": lease.request.ref,
        "event": lease.request.event,
        "target": lease.request.target,
        "state": states.word(lease),
        "outcome": lease.outcome,
        "exit_code": OUTCOME_EXIT[lease.outcome] if lease.outcome else None,
        "reason": lease.reason,
        "digest": lease.digest or None,
        "images": list(lease.images),
        "created_at": time(lease.created_at),
        "ready_at": _maybe(lease.ready_at),
        "ended_at": _maybe(lease.ended_at),
        "timings_s": dict(lease.timings_s),
        "attempts": [*(attempt(over) for over in lease.earlier), attempt(lease)],
        "log_url": f"{config.url}/v1/builds/{lease.id}/log",
        "page_url": page.address(config.url, lease.id),
    }


def attempt(over: Attempt | Lease) -> AttemptJson:
    """An earlier attempt, or the lease's present one."""
    used = over.usage
    return {
        "size": over.size.name,
        "outcome": over.outcome,
        "peak_memory_bytes": used.memory_bytes if used else None,
        "granted_memory_bytes": over.size.memory_bytes + over.grown_bytes,
        "cpu": used.cpu if used else None,
        "disk_bytes": used.disk_bytes if used else None,
        "oom_kills": used.oom_kills if used else None,
    }


def usage(lease: Lease, evidence: Evidence | None) -> UsageJson:
    used = lease.usage
    return {
        "id": lease.id,
        "repo": lease.request.repo,
        "size": size(lease.size),
        "granted_memory_bytes": lease.size.memory_bytes + lease.grown_bytes,
        "outcome": lease.outcome,
        "memory_bytes": used.memory_bytes if used else None,
        "memory_peak_bytes": used.memory_peak_bytes if used else None,
        "cpu": used.cpu if used else None,
        "disk_bytes": used.disk_bytes if used else None,
        "oom_kills": used.oom_kills if used else None,
        "samples": used.samples if used else 0,
        "points": [cast(PointJson, p._asdict()) for p in evidence.points] if evidence else [],
        "steps": [_step(need) for need in needs(evidence)] if evidence else [],
    }


def _step(need: Need) -> StepJson:
    return {
        "name": need.step.name,
        "start_s": need.step.start_s,
        "end_s": need.step.end_s,
        "seconds": need.seconds,
        "cached": need.step.cached,
        "failed": need.step.failed,
        "memory_bytes": need.memory_bytes,
        "cache_bytes": need.cache_bytes,
        "cpu": round(need.cpu, 2),
        "read_bytes": need.read_bytes,
        "written_bytes": need.written_bytes,
        "oom_kills": need.oom_kills,
    }


def status(
    config: Config,
    limits: Limits,
    leases: Sequence[Lease],
    builds: Iterable[Lease],
    facts: plan.Facts,
    *,
    accelerator: str,
    golden: GoldenJson | None,
) -> StatusJson:
    used = plan.used(leases, facts, limits)
    line = plan.queue(leases)
    fitting = limits.fitting
    pool: PoolJson = {
        "memory_bytes": limits.memory_bytes,
        "memory_used_bytes": used.memory_bytes,
        "cpus": limits.cpus,
        "cpus_used": used.cpus,
        "disk_bytes": plan.available(facts, limits).disk_bytes,
        "disk_used_bytes": used.disk_bytes,
        "queued": len(line),
        "limits": {
            "default": fitting[0].name if fitting else "",
            "sizes": [size(rung) for rung in fitting],
            "refused": [rung.name for rung in limits.sizes if rung not in fitting],
        },
    }
    return {
        "version": __version__,
        "accelerator": accelerator,
        "registry": config.images,
        "golden": golden,
        "pool": pool,
        "leases": [lease(row, config, position=line.get(row.id)) for row in leases],
        "builds": [build(row, config) for row in builds],
    }


def size(size: Size) -> SizeJson:
    return {
        "name": size.name,
        "cpus": size.cpus,
        "memory_bytes": size.memory_bytes,
        "disk_bytes": size.disk_bytes,
    }


def time(at: datetime) -> str:
    """RFC 3339, UTC, milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _maybe(at: datetime | None) -> str | None:
    return time(at) if at else None
