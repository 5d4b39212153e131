"""What the steps pass to each other: frozen, without behaviour that reaches outside.

Sizes are bytes and times are seconds unless a name says otherwise; points in time are
timezone-aware UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

GIB = 1024**3
MIB = 1024**2

MARGIN = 1.2
"""Times the 95th percentile of what past builds took is what the next one gets (the record)."""


@dataclass(frozen=True, slots=True)
class Size:
    """A rung of the ladder: what a runner of this name gets."""

    name: str
    cpus: int
    memory_bytes: int
    disk_bytes: int

    def __str__(self) -> str:
        memory, disk = self.memory_bytes // GIB, self.disk_bytes // GIB
        return f"{self.name} ({self.cpus} vCPU, {memory} GiB memory, {disk} GiB disk)"


class Desired(StrEnum):
    """What should be: set by people and policy."""

    RUNNING = "running"
    ENDED = "ended"


class Observed(StrEnum):
    """What the provider was last seen to have."""

    ABSENT = "absent"
    READY = "ready"
    LOST = "lost"


class Operation(StrEnum):
    """What is under way between the two."""

    NONE = "none"
    CREATING = "creating"
    DESTROYING = "destroying"


class Outcome(StrEnum):
    """How a build ended. `exit_status` in `OUTCOME_EXIT` is what its client ends with."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    USAGE = "usage"
    SPEC_INVALID = "spec_invalid"
    TOO_BIG = "too_big"
    OOM = "oom"
    DISK_FULL = "disk_full"
    BUDGET_EXCEEDED = "budget_exceeded"
    QUEUE_TIMEOUT = "queue_timeout"
    NOT_PUBLISHED = "not_published"
    DENIED = "denied"
    INFRASTRUCTURE = "infrastructure"
    MACHINE_UNFIT = "machine_unfit"
    INTERNAL = "internal"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"
    CLIENT_LOST = "client_lost"
    RUNNER_LOST = "runner_lost"


OUTCOME_EXIT: Mapping[Outcome, int | None] = {
    Outcome.SUCCEEDED: 0,
    Outcome.FAILED: 1,
    Outcome.USAGE: 2,
    Outcome.SPEC_INVALID: 3,
    Outcome.TOO_BIG: 4,
    Outcome.OOM: 5,
    Outcome.DISK_FULL: 6,
    Outcome.BUDGET_EXCEEDED: 7,
    Outcome.QUEUE_TIMEOUT: 8,
    Outcome.NOT_PUBLISHED: 9,
    Outcome.DENIED: 10,
    Outcome.INFRASTRUCTURE: 20,
    Outcome.MACHINE_UNFIT: 21,
    Outcome.INTERNAL: 70,
    Outcome.CANCELLED: 130,
    Outcome.TERMINATED: 143,
    Outcome.CLIENT_LOST: None,
    Outcome.RUNNER_LOST: None,
}


MOST_IMAGES = 64
"""Names of images that one build may push: what is said of a build has an end."""


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """What a repo's `.build-spec.ncl` declares; None is what it leaves to Mayfly.

    Memory and disk are in GiB and the budget in minutes, as people write them there.
    """

    schema_version: int = 1
    cpu: int | None = None
    memory_gb: float | None = None
    disk_gb: float | None = None
    time_budget_min: float | None = None
    cache_keys: tuple[str, ...] = ()
    oom_retry: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """What one attempt of a build took, as its runner saw it (buildkitd's cgroup).

    `memory_bytes` is the highest sampled anon + shmem + slab_unreclaimable, which is what the
    build needed; `memory_peak_bytes` is the kernel's memory.peak, page cache included, and never
    decides anything. `cpu` is the 95th percentile of the vCPUs used on average in each 10 s.
    `disk_free_bytes` is the least that was free on the scratch disk; None where nobody looked.
    """

    memory_bytes: int
    memory_peak_bytes: int
    cpu: float
    disk_bytes: int
    oom_kills: int
    samples: int
    disk_free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How a runner is now: what decisions about it go by.

    `falling_bytes_s` is how fast available memory shrinks, `filling_bytes_s` free disk; for
    `stalled_s` until now it has made no progress for want of memory.
    """

    at_s: float
    memory_bytes: int
    total_bytes: int
    available_bytes: int
    falling_bytes_s: int
    stalled_s: float
    disk_total_bytes: int
    disk_free_bytes: int
    filling_bytes_s: int
    oom_kills: int

    def memory_lasts(self, seconds: float) -> bool:
        """Whether memory lasts so long at the present speed."""
        return self.available_bytes >= self.falling_bytes_s * seconds

    def disk_lasts(self, seconds: float) -> bool:
        """Whether the scratch disk does."""
        return self.disk_free_bytes >= self.filling_bytes_s * seconds


@dataclass(frozen=True, slots=True)
class History:
    """What is kept of a repo's past builds, as sizing goes by it.

    `builds` are the attempts that it was made of, of one Dockerfile target or, with `target` None,
    of all of them. `memory_bytes` and `cpu` are 95th percentiles of what those needed; an attempt
    that filled its vCPUs counts in `cpu` as that many less `MARGIN`. `killed_bytes` is the
    most memory that one of them had when it was killed for want of it; 0 when none was.
    """

    builds: int
    memory_bytes: float
    cpu: float
    killed_bytes: int = 0
    saturated: int = 0
    target: str | None = None


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What a client asks for. `size` is a rung's name, or empty for what sizing decides; `grow`
    is whether its runner may be given more memory while it runs. `pushes` are the repositories of
    the farm's own registry that it means to push to, so that a refusal comes before a runner.
    `pipeline` is the CI's number of what the build belongs to (a label); `supersede` ends older
    builds of the same that belong to another.
    `keep_min` is for how many minutes the runner stays when the build fails, for people to look
    into it.
    `builder` names the builder whose docker clients the runner is for.
    `counts` is whether what is used says anything of later builds: a command beside BuildKit uses
    nothing that is seen.
    """

    repo: str
    ssh_public_key: str
    size: str = ""
    ref: str = ""
    event: str = "manual"
    target: str = ""
    languages: tuple[str, ...] = ()
    spec: BuildSpec | None = None
    grow: bool = True
    pushes: tuple[str, ...] = ()
    pipeline: str = ""
    supersede: bool = False
    keep_min: float = 0
    builder: str = ""
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a lease was granted: by whom, and what follows from that.

    `why` says for people what makes it trusted or not. `slot` is empty for a trusted lease; what is
    not trusted writes below it only: `images/pr/<repo>/<slot>`, `cache/untrusted/<repo>/<slot>__…`.
    `alone`: of the leases of its repo and slot, one has a runner at a time. `largest` is the name
    of the largest size that it may come to have; empty: any.
    """

    principal: str = "admin"
    why: str = ""
    slot: str = ""
    pull_request: int = 0
    alone: bool = False
    largest: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that was not the build's last. `ended_at` is when the next one was decided on."""

    size: Size
    outcome: Outcome
    reason: str
    ended_at: datetime
    grown_bytes: int = 0
    usage: Usage | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its row says. A build's id is its lease's id.

    `size`, `ready_at`, `timings_s`, `grown_bytes` (the memory that the runner was granted beyond
    its size) and `usage` (what it used, as far as its provider has told) are of the present
    attempt; `earlier` has those before it. `deadline` is fixed by the first runner. The runner of a
    build that has ended is left alone until `kept_until`, which is no later.
    """

    id: str
    request: LeaseRequest
    size: Size
    desired: Desired
    observed: Observed
    operation: Operation
    attempt: int
    created_at: datetime
    expires_at: datetime
    budget_s: float
    ready_at: datetime | None = None
    deadline: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    reason: str = ""
    digest: str = ""
    images: tuple[str, ...] = ()
    ssh_host_key: str = ""
    timings_s: Mapping[str, float] = field(default_factory=dict)
    trusted: bool = True
    grown_bytes: int = 0
    usage: Usage | None = None
    earlier: tuple[Attempt, ...] = ()
    terms: Terms = Terms()
    kept_until: datetime | None = None

    @property
    def runner(self) -> str:
        """The name of the VM that serves this attempt."""
        return f"{self.id}-{self.attempt}"

    @property
    def earlier_runner(self) -> str:
        """The name of the VM that served the attempt before this one; empty for the first."""
        return f"{self.id}-{self.attempt - 1}" if self.earlier else ""

    @property
    def began_at(self) -> datetime:
        """When the present attempt was asked for."""
        return self.earlier[-1].ended_at if self.earlier else self.created_at


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """What a provider needs to make one runner. `budget_s` is counted from readiness.

    `scratch_of` names the runner whose scratch disk it is to go on with; that one ends thereby,
    also where `spoiled` says why its disk is not to be used.
    """

    runner: str
    size: Size
    authorized_key: str
    budget_s: float
    scratch_of: str = ""
    spoiled: str = ""


@dataclass(frozen=True, slots=True)
class Runner:
    """A VM that a provider has, with what a client needs to trust it.

    `ssh_host_key` is an OpenSSH public key line; it is empty while the runner is not ready. `age_s`
    is for how long it has been ready, by the provider's own steady clock. `ended` is set when the
    provider has ended the VM itself and says why; nothing is left of it then. `disk_used_bytes` is
    what its disks take where they are, `load` how it was when it was last looked at. `cold` says
    why it did not get the scratch disk that it was to go on with.
    """

    name: str
    size: str
    ready: bool
    ssh_host_key: str = ""
    timings_s: Mapping[str, float] = field(default_factory=dict)
    age_s: float = field(default=0.0, compare=False)
    ended: Outcome | None = None
    disk_used_bytes: int = field(default=0, compare=False)
    load: Load | None = field(default=None, compare=False)
    cold: str = ""


BUILDER_NAME = r"[a-z][a-z0-9_-]{0,31}"
"""What a builder may be called, as a pattern: also a file name, and one that buildx takes."""


@dataclass(frozen=True, slots=True)
class Builder:
    """What docker clients know as a buildx builder: one runner while anything is connected.

    `principal` made it, and `trusted` is what that makes its leases. `uid` is the user of this
    machine who may use its socket, beside root; None where there is no socket, and TLS with the
    client's certificate instead, whose SHA-256 (hex, of its DER) is `fingerprint`.
    """

    name: str
    repo: str
    size: str
    linger_s: float
    principal: str
    trusted: bool
    created_at: datetime
    uid: int | None = None
    fingerprint: str = ""
    expires_at: datetime | None = None
