"""What clients may send, checked: unknown names, wrong types and values out of bounds are refused.

Whatever these accept is bounded: a row holds a few KiB at most.
"""

from __future__ import annotations

import re
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from mayfly.config import repo_pattern
from mayfly.errors import UsageError
from mayfly.model import BUILDER_NAME, MOST_IMAGES, LeaseRequest, Outcome
from mayfly.registry.grants import LONGEST_NAME, REPOSITORY, check_repo
from mayfly.spec import SpecForm

CLAIMABLE = frozenset(
    {
        Outcome.SUCCEEDED,
        Outcome.FAILED,
        Outcome.USAGE,
        Outcome.NOT_PUBLISHED,
        Outcome.DENIED,
        Outcome.INFRASTRUCTURE,
        Outcome.INTERNAL,
        Outcome.CANCELLED,
        Outcome.TERMINATED,
    }
)
"""What a client can know. OOM, budget, lost runners and the like are found out without it."""

STOPPABLE = frozenset({Outcome.CANCELLED, Outcome.TERMINATED})
"""What ending a lease without a report can mean."""

_TEXT = r"^[^\x00-\x1f\x7f]*$"


def _repo(value: str) -> str:
    try:
        return check_repo(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _ssh_key(value: str) -> str:
    """The key without its comment: one line that authorizes exactly one key."""
    kind_and_key = " ".join(value.split()[:2])
    try:
        load_ssh_public_key(kind_and_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("not an OpenSSH public key line, as in ssh-ed25519 AAAA…") from None
    return kind_and_key


def _builder_name(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(BUILDER_NAME, value):
        raise ValueError(
            f"{value[:64]!r} is no builder's name: a-z, 0-9, _ and -, a letter first, 32 at most"
        )
    return value


def _claimable(outcome: Outcome) -> Outcome:
    if outcome not in CLAIMABLE:
        raise ValueError("not an outcome that a client reports")
    return outcome


def _stoppable(outcome: Outcome) -> Outcome:
    if outcome not in STOPPABLE:
        raise ValueError("a lease is ended as cancelled or terminated")
    return outcome


Text = Annotated[str, StringConstraints(max_length=255, pattern=_TEXT)]
Reason = Annotated[str, StringConstraints(max_length=1000, pattern=_TEXT)]
Digest = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64})?$")]
ImageName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[!-~]+$")]
RepoPattern = Annotated[str, StringConstraints(max_length=200), AfterValidator(repo_pattern)]
Repository = Annotated[
    str, StringConstraints(max_length=LONGEST_NAME, pattern=f"^(?:{REPOSITORY.pattern})$")
]
Phase = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,31}$")]
Seconds = Annotated[float, Field(ge=0, le=10_000_000, allow_inf_nan=False)]
BuilderName = Annotated[
    str, BeforeValidator(_builder_name), StringConstraints(pattern=f"^{BUILDER_NAME}$")
]
"""Also the name of a file, and one that buildx takes."""
Stop = Annotated[Outcome, AfterValidator(_stoppable)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LeaseForm(_Form):
    """The body of `POST /v1/leases`."""

    repo: Annotated[str, AfterValidator(_repo)]
    ssh_public_key: Annotated[str, Field(max_length=8192), AfterValidator(_ssh_key)]
    size: Text = ""
    ref: Text = ""
    event: Text = "manual"
    target: Text = ""
    languages: Annotated[tuple[Text, ...], Field(max_length=32)] = ()
    grow: bool = True
    spec: SpecForm | None = None
    pushes: Annotated[tuple[Repository, ...], Field(max_length=MOST_IMAGES)] = ()
    pipeline: Text = ""
    supersede: bool = False
    keep_min: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] = 0
    builder: Text = ""
    counts: bool = True

    def request(self) -> LeaseRequest:
        fields = self.model_dump(exclude={"spec"})
        return LeaseRequest(**fields, spec=self.spec.spec() if self.spec else None)


class BuilderForm(_Form):
    """The body of `POST /v1/builders`: `uid` for a socket, or `public_key` (PEM) for TLS."""

    name: BuilderName
    repo: Annotated[str, AfterValidator(_repo)]
    size: Text = ""
    linger_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] | None = None
    uid: Annotated[int, Field(ge=0, lt=2**32 - 1)] | None = None
    public_key: Annotated[str, Field(max_length=8192)] = ""

    @model_validator(mode="after")
    def _one_way_in(self) -> BuilderForm:
        if (self.uid is None) == (not self.public_key):
            raise ValueError("a builder has either a socket (uid) or a certificate (public_key)")
        return self


class SizeForm(_Form):
    """The body of `POST /v1/size`: of a lease's, what sizes are decided by."""

    repo: Annotated[str, AfterValidator(_repo)]
    size: Text = ""
    target: Text = ""
    languages: Annotated[tuple[Text, ...], Field(max_length=32)] = ()
    spec: SpecForm | None = None

    def request(self) -> LeaseRequest:
        fields = self.model_dump(exclude={"spec"})
        return LeaseRequest(
            **fields, ssh_public_key="", spec=self.spec.spec() if self.spec else None
        )


class TokenForm(_Form):
    """The body of `POST /v1/tokens`: a static token for builds of these repos."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
    repos: Annotated[tuple[RepoPattern, ...], Field(min_length=1, max_length=64)]
    trusted: bool = False
    life_s: Annotated[float, Field(ge=60, le=10 * 366 * 86400)] | None = None


class KeyForm(_Form):
    """The body of `POST /v1/leases/{id}/keys`: whom else the runner is to let in."""

    ssh_public_key: Annotated[str, Field(max_length=8192), AfterValidator(_ssh_key)]


class ReportForm(_Form):
    """The body of a report: how the build ended, as its client saw it."""

    outcome: Annotated[Outcome, AfterValidator(_claimable)]
    attempt: Annotated[int, Field(ge=0, le=999)] = 0
    """Which attempt it is about; 0: the present one."""
    reason: Reason = ""
    digest: Digest = ""
    timings_s: Annotated[dict[Phase, Seconds], Field(max_length=64)] = {}
    images: Annotated[tuple[ImageName, ...], Field(max_length=MOST_IMAGES)] = ()
