"""The JSON of the HTTP API, declared once for both of its ends.

The orchestrator builds these (`orchestrator/views.py`), `client.py` returns them. Points in time
are RFC 3339 UTC; durations are seconds and sizes bytes, with the unit in the name.
"""

from __future__ import annotations

# pydantic reads these, and before Python 3.12 it knows only this TypedDict.
from typing_extensions import TypedDict


class SizeJson(TypedDict):
    name: str
    cpus: int
    memory_bytes: int
    disk_bytes: int


class NeedJson(TypedDict):
    """How much of a dimension (memory, cpu, disk) each tier asks for, in `unit`."""

    dimension: str
    unit: str
    declared: float | None
    history: float | None
    default: float | None
    wanted: float
    tier: str


class HistoryJson(TypedDict):
    """What past attempts took. `target` is null where those of all targets count."""

    builds: int
    target: str | None
    memory_p95_bytes: float
    cpu_p95: float
    killed_bytes: int
    saturated: int


class SizingJson(TypedDict):
    """A size and why: `lines` are for people, all else for programs.

    `tier` is asked, declared, history, default or smallest. `deciding` are the dimensions for which
    the next smaller size will not do; `short` those that the size has less of than is wanted.
    `computed` is another than the size only where that was asked for by name.
    """

    size: SizeJson
    tier: str
    deciding: list[str]
    short: list[str]
    computed: str | None
    languages: list[str]
    history: HistoryJson | None
    trouble: str
    needs: list[NeedJson]
    lines: list[str]


class RecordJson(TypedDict):
    """What is kept of one attempt. `memory_limit_bytes` is its size's and what it grew by.

    `memory_bytes`, `cpu` and `oom_kills` are what its runner saw, null without. `vm_s` is for how
    long there was a VM, `cost` what that came to where prices are configured.
    """

    attempt: int
    size: str
    memory_limit_bytes: int
    outcome: str | None
    memory_bytes: int | None
    cpu: float | None
    oom_kills: int | None
    counts: bool
    vm_s: float
    cost: float | None


class WhyJson(TypedDict):
    """Why a build had its size, and what its attempts took. `sizing` is null where it is not known
    any more, or not now: then `trouble` says why.
    """

    build: str
    repo: str
    target: str
    sizing: SizingJson | None
    attempts: list[RecordJson]
    trouble: str


class AskedJson(TypedDict):
    """The answer to `POST /v1/leases`. `token` opens this lease's routes and no others.

    `page_url` is for a browser: it carries a token that reads this build, for a day longer than the
    lease can last, and does nothing else.
    """

    id: str
    token: str
    state: str
    relay_url: str
    expires_at: str
    page_url: str


class RunnerJson(TypedDict):
    """What the lease's holder needs to reach its runner; `token` is for the edge."""

    name: str
    ssh_host_key: str
    token: str


class BuilderJson(TypedDict):
    """A builder of docker clients. `size` is empty where sizing decides; `uid` is null and
    `fingerprint` set where it is reached by TLS; `expires_at` is its certificate's end.

    `address` is what buildx connects to. `lease` is the one that it has now, in `state`; without
    one that is `idle`.
    """

    name: str
    repo: str
    size: str
    linger_s: float
    principal: str
    trusted: bool
    created_at: str
    uid: int | None
    fingerprint: str
    expires_at: str | None
    address: str
    lease: str | None
    state: str


class BuildersJson(TypedDict):
    """Every builder, by name. `revision` is another one after each change; `authority` (PEM) is
    what clients' certificates are signed by.
    """

    revision: str
    authority: str
    builders: list[BuilderJson]


class MadeBuilderJson(TypedDict):
    """A new builder, the certificate of its client, and what the farm's own one is signed by; both
    PEM, and empty where it has a socket.
    """

    builder: BuilderJson
    certificate: str
    ca: str


class GivenJson(TypedDict):
    """A static token, as far as anybody but its holder may know it. `repos` are patterns."""

    name: str
    repos: list[str]
    trusted: bool
    created_at: str
    expires_at: str | None


class NewTokenJson(GivenJson):
    """A static token that has just been made: the one time that it is shown."""

    token: str


class SecretJson(TypedDict):
    """A secret as Woodpecker takes it: for steps with one of these images, on these events."""

    name: str
    value: str
    images: list[str]
    events: list[str]


class SecretsJson(TypedDict):
    """The answer of a secret extension."""

    secrets: list[SecretJson]


class CredentialJson(TypedDict):
    """A registry's login as Woodpecker takes it."""

    address: str
    username: str
    password: str


class RegistriesJson(TypedDict):
    """The answer of a registry extension."""

    registries: list[CredentialJson]


class TermsJson(TypedDict):
    """On which terms a lease was granted; `why` is for people.

    `images` are the repositories that it may push to, `NAME` standing for any one part. It writes
    the layer caches of the zone `cache_to` and reads those of `cache_from`, in that order; what is
    not trusted has a `slot` in the names of its own. `largest` is the largest size that it may come
    to have, by name, or null.
    """

    principal: str
    trusted: bool
    why: str
    slot: str
    images: list[str]
    cache_to: str
    cache_from: list[str]
    largest: str | None


class LeaseJson(TypedDict):
    """A lease. `state` is queued, creating, ready, kept, destroying, ended or lost.

    `queue_position` counts from 1 while queued, else it is null. `runner` is null unless the
    lease is ready and the caller is its holder. `kept_until` is when the runner of a failed build
    goes that is kept for people to look into it.
    """

    id: str
    repo: str
    state: str
    desired: str
    observed: str
    operation: str
    attempt: int
    size: SizeJson
    queue_position: int | None
    created_at: str
    expires_at: str
    ready_at: str | None
    deadline: str | None
    ended_at: str | None
    outcome: str | None
    exit_code: int | None
    reason: str
    timings_s: dict[str, float]
    relay_url: str
    runner: RunnerJson | None
    terms: TermsJson
    kept_until: str | None


class BeatJson(TypedDict):
    expires_at: str
    state: str


class LoggedJson(TypedDict):
    """How many bytes of the log are settled: the offset of the next append."""

    size_bytes: int


class VerdictJson(TypedDict):
    """The answer to a report; `outcome` is the one that counts: the first that was set, by what
    the runner's side has seen. `reason` says why, where there is anything to say, and `kept_until`
    for how long the runner stays, if it does.
    """

    verdict: str
    attempt: int
    outcome: str
    reason: str
    kept_until: str | None


class AttemptJson(TypedDict):
    """One runner's part of a build; what it used is null until it has been looked at.

    `peak_memory_bytes` is the most that was needed, without page cache; `granted_memory_bytes` is
    the size's memory and what the runner was given while it ran.
    """

    size: str
    outcome: str | None
    peak_memory_bytes: int | None
    granted_memory_bytes: int
    cpu: float | None
    disk_bytes: int | None
    oom_kills: int | None


class PointJson(TypedDict):
    """A stretch of a build, up to `at_s` after its runner was ready: the most that was seen in it.

    From `cpu_s` on the numbers count from the beginning.
    """

    at_s: float
    memory_bytes: int
    cache_bytes: int
    total_bytes: int
    disk_bytes: int
    cpu_s: float
    read_bytes: int
    written_bytes: int
    oom_kills: int


class StepJson(TypedDict):
    """A step as BuildKit records it, and what the build used while it ran.

    `end_s` is null for one that was still running; `cpu` is vCPUs on average.
    """

    name: str
    start_s: float
    end_s: float | None
    seconds: float
    cached: bool
    failed: bool
    memory_bytes: int
    cache_bytes: int
    cpu: float
    read_bytes: int
    written_bytes: int
    oom_kills: int


class UsageJson(TypedDict):
    """What a build used. `memory_bytes` is its need; `memory_peak_bytes` counts page cache too."""

    id: str
    repo: str
    size: SizeJson
    granted_memory_bytes: int
    outcome: str | None
    memory_bytes: int | None
    memory_peak_bytes: int | None
    cpu: float | None
    disk_bytes: int | None
    oom_kills: int | None
    samples: int
    points: list[PointJson]
    steps: list[StepJson]


class BuildJson(TypedDict):
    """A build, running or ended; its `outcome` and `exit_code` are null until it ended."""

    id: str
    repo: str
    ref: str
    event: str
    target: str
    state: str
    outcome: str | None
    exit_code: int | None
    reason: str
    digest: str | None
    images: list[str]
    created_at: str
    ready_at: str | None
    ended_at: str | None
    timings_s: dict[str, float]
    attempts: list[AttemptJson]
    log_url: str
    page_url: str


class GoldenJson(TypedDict):
    name: str
    digest: str
    age_s: float


class LimitsJson(TypedDict):
    """`sizes` fit this machine, smallest first; `refused` do not."""

    default: str
    sizes: list[SizeJson]
    refused: list[str]


class PoolJson(TypedDict):
    memory_bytes: int
    memory_used_bytes: int
    cpus: int
    cpus_used: int
    disk_bytes: int
    disk_used_bytes: int
    queued: int
    limits: LimitsJson


class StatusJson(TypedDict):
    version: str
    accelerator: str
    registry: str
    golden: GoldenJson | None
    pool: PoolJson
    leases: list[LeaseJson]
    builds: list[BuildJson]


class TokenJson(TypedDict):
    """Docker's token answer: `token` and `access_token` are the same."""

    token: str
    access_token: str
    expires_in: int
    issued_at: str
