"""TOML and environment to one frozen `Config`; every fault is reported at once.

Each option is declared once, here: its type, default, bounds and description. The reference in
`docs/configuration.md` is generated from these classes (`python -m mayfly.config`) and a test
holds the two together.

Precedence, strongest first: `MAYFLY_STATE` and `MAYFLY_CACHE`; `MAYFLY_<SECTION>__<OPTION>`;
the file named by `MAYFLY_CONFIG` (default `/etc/mayfly/mayfly.toml`, which may be absent).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mayfly.errors import ConfigError
from mayfly.model import GIB, Size

DEFAULT_FILE = Path("/etc/mayfly/mayfly.toml")

_REFERENCE = (
    r"(?:localhost|[a-z0-9-]+(?:\.[a-z0-9-]+)+|[a-z0-9.-]+(?=:)|\[[0-9a-f:]+\])(?::[0-9]+)?"
    r"(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+"
)
"""A registry's host, which has a dot or a port, and the first parts of a name there."""


SECRET_OPTIONS = frozenset({"access_key", "secret_key", "password", "token"})
"""Options of any section whose value no error shows, and no file but root's holds."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("write it as ADDRESS:PORT, as in 127.0.0.1:5000")
    ipaddress.ip_address(host.strip("[]"))
    return value


def _address_or_none(value: str) -> str:
    return _address(value) if value else value


def _network(value: str) -> str:
    network = ipaddress.ip_network(value)
    if network.version != 4:
        raise ValueError("write an IPv4 network, as in 10.0.0.0/8: runners have no IPv6")
    return str(network)


def _resolver(value: str) -> str:
    address = ipaddress.ip_address(value)
    if address.version != 4:
        raise ValueError("write an IPv4 address: runners have no IPv6")
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        raise ValueError("write an address that reaches this machine: loopback is a runner's own")
    return value


def _prefix(value: str) -> str:
    if value and not re.fullmatch(_REFERENCE, value):
        raise ValueError("write it as HOST/OWNER, lower-case, without a tag")
    return value


_Absolute = Annotated[Path, AfterValidator(Path.absolute)]
"""Relative paths are below the working directory of whoever reads the configuration."""


class Server(_Section):
    """The one address that clients and runners know."""

    listen: Annotated[str, AfterValidator(_address)] = Field(
        "127.0.0.1:5000", description="Address and port of the edge (TLS)."
    )
    name: str = Field(
        "registry.mayfly.internal",
        pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
        description="Host name of the edge, the same inside runners and outside.",
    )

    public_port: int = Field(
        0,
        ge=0,
        lt=65536,
        description="Port that clients and runners know, where a proxy listens at it and passes on "
        "to `listen`; 0: that of `listen`.",
    )
    certificate: str = Field(
        "",
        description="PEM file with a certificate of yours for `name`, and its chain; empty: one of "
        "Mayfly's own CA.",
    )
    key: str = Field("", description="PEM file with that certificate's private key.")

    @model_validator(mode="after")
    def _both(self) -> Server:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together")
        return self

    @property
    def port(self) -> int:
        """The port in names of images and in addresses."""
        return self.public_port or int(self.listen.rpartition(":")[2])


class Rung(_Section):
    """One rung of the ladder."""

    cpu: int = Field(ge=1, le=256, description="vCPUs.")
    memory_gb: int = Field(ge=1, le=1024, description="Memory in GiB.")
    disk_gb: int = Field(ge=2, le=16384, description="Scratch disk in GiB.")


class Pool(_Section):
    """What the runners of this machine may use together."""

    memory_gb: int = Field(
        0, ge=0, description="GiB of memory for runners; 0: the machine's less `reserve_gb`."
    )
    reserve_gb: int = Field(2, ge=0, description="GiB of memory that are left to everything else.")
    disk_gb: int = Field(
        0,
        ge=0,
        description="GiB of disk for runners; 0: what is free where the state is, less "
        "`disk_reserve_gb`.",
    )
    disk_reserve_gb: int = Field(
        10,
        ge=0,
        description="GiB of disk that are left to templates, golden images and the bucket.",
    )
    cpu_overcommit: float = Field(
        2.0, ge=1, le=16, description="vCPUs for each core; a rung with more is refused."
    )
    cpu_weight: int = Field(
        20,
        ge=1,
        le=100,
        description="CPU and IO weight of all runners together, where every other group of this "
        "machine has 100.",
    )
    grow: bool = Field(
        True,
        description="Whether a running build that is short of memory is given some, up to what the "
        "next size has.",
    )
    queue_timeout_s: int = Field(
        900, ge=1, description="Seconds a build waits for room in the pool before it gives up."
    )


class LeaseOptions(_Section):
    """How long a lease lives."""

    heartbeat_s: float = Field(5, ge=0.5, description="Seconds between a client's heartbeats.")
    grace_s: float = Field(
        30,
        ge=2,
        validate_default=True,
        description="Seconds without a heartbeat after which a client counts as lost; "
        "at least two heartbeats.",
    )
    budget_min: float = Field(
        60, gt=0, le=24 * 60, description="Minutes that a build may take once its runner is ready."
    )
    max_budget_min: float = Field(
        240,
        gt=0,
        le=7 * 24 * 60,
        description="Minutes that a build spec may ask for; `budget_min` where that is more.",
    )
    max_keep_min: float = Field(
        30,
        ge=0,
        le=24 * 60,
        description="Minutes that the runner of a failed build is kept at most, where its client "
        "asks for that, and never beyond its time budget; 0: not at all.",
    )
    max_oom_retries: int = Field(
        1,
        ge=0,
        le=9,
        description="How often a build that ran out of memory goes on in the next size; 0: never.",
    )

    @field_validator("grace_s")
    @classmethod
    def _two_heartbeats(cls, grace_s: float, info: ValidationInfo) -> float:
        heartbeat_s: float = info.data.get("heartbeat_s", 0)
        if grace_s < 2 * heartbeat_s:
            raise ValueError(f"must be at least twice lease.heartbeat_s, which is {heartbeat_s:g}")
        return grace_s


class Vm(_Section):
    """How runners are made."""

    provider: Literal["qemu", "fake"] = Field("qemu", description="What makes VMs.")
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        "auto", description="`auto`: KVM where a guest really runs on it, else TCG."
    )
    qemu: str = Field("qemu-system-x86_64", description="QEMU's program (8.2 or newer).")
    boot_memory_mb: int = Field(
        4096,
        ge=512,
        multiple_of=128,
        description="MiB of memory of the template, at most what the smallest size has; the rest "
        "of a size is plugged in as DIMMs, which costs time and memory for each runner.",
    )


class Network(_Section):
    """What runners may reach."""

    subnet: Annotated[str, AfterValidator(_network)] = Field(
        "198.18.0.0/16",
        description="IPv4 network for the links between this machine and its runners.",
    )
    resolvers: tuple[Annotated[str, AfterValidator(_resolver)], ...] = Field(
        (),
        description="DNS servers (IPv4) for runners, and the only ones; an address of this machine "
        "is fine. Empty: those of this machine's resolv.conf.",
    )
    allow: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (),
        description="IPv4 networks that runners may reach although they are private. One address "
        "(`/32`) may be this machine's own; a larger network opens none of this machine's.",
    )


class Registry(_Section):
    """Where images and the layer cache are: a registry that Mayfly runs, or somebody else's."""

    kind: Literal["auto", "distribution", "zot", "external"] = Field(
        "auto",
        description="`auto`: zot where its program is on PATH when the state is made, else "
        "distribution. `external`: somebody else's; then nothing is started and no bucket is used.",
    )
    port: int = Field(
        0, ge=0, lt=65536, description="zot's port on loopback; 0: one is chosen and kept."
    )
    images: Annotated[str, AfterValidator(_prefix)] = Field(
        "",
        description="What `images/` stands for in names of images, as in `ghcr.io/acme` "
        "(external only).",
    )
    cache: Annotated[str, AfterValidator(_prefix)] = Field(
        "",
        description="The one repository of all layer caches, each a tag (external only); "
        "empty: `mayfly-cache` below `images`.",
    )
    username: str = Field(
        "", description="Name that clients log in with; empty: each uses a login of its own."
    )
    password_file: str = Field("", description="File with that login's password, on one line.")
    ca: str = Field(
        "",
        description="PEM file with a CA that runners and clients trust for it; "
        "empty: those that they trust anyway.",
    )

    @model_validator(mode="after")
    def _of_one_kind(self) -> Registry:
        given = [
            n for n in ("images", "cache", "username", "password_file", "ca") if getattr(self, n)
        ]
        if self.kind != "external" and given:
            raise ValueError(f'{given[0]} is for kind = "external" only')
        if self.kind == "external" and not self.images:
            raise ValueError('kind = "external" needs images, as in "ghcr.io/acme"')
        if bool(self.username) != bool(self.password_file):
            raise ValueError("username and password_file go together")
        return self

    @property
    def external(self) -> bool:
        return self.kind == "external"


class S3(_Section):
    """The bucket that is the registry's only truth. Empty `endpoint`: an embedded SeaweedFS."""

    endpoint: str = Field("", description="URL of the S3 service; empty: the embedded one.")
    region: str = Field("us-east-1", description="Region name that requests are signed for.")
    bucket: str = Field("mayfly", min_length=3, max_length=63, description="Bucket name.")
    access_key: str = Field("", description="Access key id.")
    secret_key: str = Field("", description="Secret key; better given as MAYFLY_S3__SECRET_KEY.")


class Metrics(_Section):
    """What builds took: a SurrealDB that sizes are decided by, and what VMs cost."""

    url: str = Field(
        "",
        pattern=r"^$|^(wss?|https?)://[^/@]+",
        description="URL of a SurrealDB server, as in `ws://db.example:8000`; "
        "empty: the embedded one, below `state`.",
    )
    username: str = Field("", description="The server's user, of its root.")
    password: str = Field(
        "", description="That user's password; better given as MAYFLY_METRICS__PASSWORD."
    )
    keep_days: int = Field(
        180, ge=1, description="Days that an attempt's record is kept; 90 count in sizes."
    )
    price_cpu_hour: float = Field(
        0, ge=0, description="What a vCPU costs for an hour, in a currency of yours; 0: not told."
    )
    price_gib_hour: float = Field(0, ge=0, description="What a GiB of memory costs for an hour.")


class Builders(_Section):
    """Builders for docker clients that know nothing of Mayfly (`mayfly builder create`)."""

    listen: Annotated[str, AfterValidator(_address_or_none)] = Field(
        "127.0.0.1:5001",
        description="Address and port for clients elsewhere (TLS, with a certificate of their "
        "own); empty: only sockets on this machine.",
    )
    linger_s: float = Field(
        60,
        ge=0,
        le=3600,
        description="Seconds that a builder keeps its runner after the last connection has "
        "closed, unless it says otherwise.",
    )

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2] or 0)


def repo_pattern(value: str) -> str:
    """A pattern of repos as it is; raises `ValueError` for what is none. In it `*` is any one part
    or piece of it, `**` at the end any parts.
    """
    if not re.fullmatch(r"[a-z0-9._*-]+(?:/[a-z0-9._*-]+)*", value):
        raise ValueError(f"{value!r} is no pattern of repos: write it as in team/app or team/*")
    return value


_Repos = tuple[Annotated[str, AfterValidator(repo_pattern)], ...]


class Trust(_Section):
    """Which builds are trusted, and what those get that are not: docs/trust.md."""

    events: tuple[Literal["push", "cron", "manual", "tag", "release", "deployment"], ...] = Field(
        ("push", "cron", "manual", "tag"),
        description="Proven events of trusted builds, on the repo's default branch; a `tag` or "
        "`release` where its commit was seen there. Pull requests are never trusted.",
    )
    branches: tuple[str, ...] = Field(
        (),
        description="Patterns of branches that are trusted beside each repo's default branch, as "
        "in `release/*`.",
    )
    untrusted_size: str = Field(
        "",
        description="Largest size of a build that is not trusted; empty: the second smallest of "
        "the ladder.",
    )
    untrusted_budget_min: float = Field(
        30, gt=0, le=24 * 60, description="Minutes that a build that is not trusted may take."
    )
    one_at_a_time: bool = Field(
        True,
        description="Whether of the builds of one pull request (or branch that is not trusted) "
        "only one has a runner at a time.",
    )
    ticket_max_age_h: float = Field(
        24,
        gt=0,
        le=7 * 24,
        description="Hours that a pipeline's ticket is good for leases, however long it queues.",
    )
    clock_skew_s: int = Field(
        60, ge=1, le=600, description="Seconds that another machine's clock may be off by."
    )


_ADDRESS = re.compile(
    r"(?:https://[^/@?#\s]+|http://(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]+)?)(?:/[^@?#\s]*)?"
)
"""Of a server: no login in it, and unencrypted on this machine only."""


def _https(value: str) -> str:
    if value and not _ADDRESS.fullmatch(value):
        raise ValueError("write it as https://HOST, as in https://ci.example.org")
    return value.rstrip("/")


_Url = Annotated[str, AfterValidator(_https)]


class Woodpecker(_Section):
    """A Woodpecker server whose pipelines build here, by its secret extension: docs/trust.md."""

    public_key: str = Field(
        "",
        description="The server's public key (PEM), as its `/api/signature/public-key` shows it; "
        "empty: no server is believed.",
    )
    fingerprint: str = Field(
        "",
        pattern=r"^(sha256:[0-9a-f]{64})?$",
        description="The SHA-256 of that key in DER, as in `sha256:1f…`: what is pinned.",
    )
    repos: _Repos = Field(("**",), description="Patterns of the repos that get tickets.")
    secret: str = Field(
        "mayfly_token",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Name of the secret that a pipeline finds its ticket in.",
    )
    plugin_images: tuple[str, ...] = Field(
        (),
        description="The only images that see the ticket; empty: this farm's "
        "`images/mayfly/buildkit-launcher`, without a tag and with this version.",
    )
    url: _Url = Field(
        "", description="Its address, to ask whether a pipeline has ended; empty: nobody is asked."
    )
    token: str = Field(
        "", description="Access token for that; better given as MAYFLY_WOODPECKER__TOKEN."
    )

    @model_validator(mode="after")
    def _is_pinned(self) -> Woodpecker:
        if bool(self.public_key) != bool(self.fingerprint):
            raise ValueError("public_key and fingerprint go together")
        if self.public_key and (found := _fingerprint(self.public_key)) != self.fingerprint:
            raise ValueError(f"public_key has the fingerprint {found}, and not the pinned one")
        if self.token and not self.url:
            raise ValueError("token is for url, which is empty")
        return self


def _fingerprint(pem: str) -> str:
    """Of an Ed25519 public key. Raises `ValueError` for what is none."""
    # Only who has such a key pays for this import: commands have to start at once.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(pem.encode())
    except ValueError:
        raise ValueError("public_key is not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("public_key is not an Ed25519 key, which Woodpecker signs with")
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


Event = Literal["push", "tag", "release", "deployment", "cron", "manual", "pull_request"]
Claim = Literal["repo", "event", "ref", "ref_type", "commit", "run"]


class Issuer(_Section):
    """A forge whose pipelines build here by OIDC tokens: docs/trust.md."""

    kind: Literal["forgejo", "github", "gitlab"] = Field(
        description="What its claims are called, and where its keys are."
    )
    issuer: _Url = Field(
        min_length=1,
        description="What its tokens name as `iss`, as in `https://git.example.org/api/actions`; "
        "keys are fetched from there and from nowhere else.",
    )
    audience: str = Field(
        "", description="What they must name as `aud`; empty: this farm's address."
    )
    repos: _Repos = Field(
        min_length=1, description="Patterns of the repos that may build here, as in `acme/*`."
    )
    default_branch: str = Field(
        "main", description="The default branch of its repos, which no token of a forge names."
    )
    default_branches: Mapping[str, str] = Field(
        {}, description="Those of repos where it is another, by the repo's name."
    )
    claims: Mapping[Claim, str] = Field(
        {},
        description="Names of claims, where they are others than the kind's: `repo`, `event`, "
        "`ref`, `ref_type`, `commit`, `run`.",
    )
    events: Mapping[str, Event] = Field(
        {}, description="What the forge's own words for events stand for, beside the kind's."
    )
    keys: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~/-]*)?$",
        description="Path of its key set below `issuer`; empty: the kind's.",
    )
    ca: str = Field("", description="PEM file with a CA that it is trusted by as well.")


class Golden(_Section):
    """What goes into images that Mayfly makes."""

    site_certificates: tuple[Path, ...] | Literal["auto"] = Field(
        "auto",
        description="CA certificates of a company's TLS proxy for runners and base images; "
        "`auto`: those in /usr/local/share/ca-certificates.",
    )


DEFAULT_LADDER = {
    "small": Rung(cpu=2, memory_gb=4, disk_gb=20),
    "medium": Rung(cpu=4, memory_gb=8, disk_gb=40),
    "large": Rung(cpu=8, memory_gb=16, disk_gb=80),
    "xlarge": Rung(cpu=16, memory_gb=32, disk_gb=160),
}


class Config(_Section):
    """Everything that an operator may set."""

    state: _Absolute = Field(Path("/var/lib/mayfly"), description="All that Mayfly keeps.")
    cache: _Absolute = Field(
        Path("/var/cache/mayfly"), description="What can be made or fetched again: tools."
    )
    server: Server = Server()
    ladder: Mapping[str, Rung] = Field(
        DEFAULT_LADDER, min_length=1, description="The sizes, by name; the smallest is the default."
    )
    pool: Pool = Pool()
    lease: LeaseOptions = LeaseOptions()
    vm: Vm = Vm()
    network: Network = Network()
    registry: Registry = Registry()
    s3: S3 = S3()
    metrics: Metrics = Metrics()
    builders: Builders = Builders()
    golden: Golden = Golden()
    trust: Trust = Trust()
    woodpecker: Woodpecker = Woodpecker()
    oidc: Mapping[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")], Issuer] = Field(
        {}, description="Forges whose OIDC tokens are believed, each by a name of yours."
    )

    @model_validator(mode="after")
    def _sizes_are_rungs(self) -> Config:
        if self.trust.untrusted_size and self.trust.untrusted_size not in self.ladder:
            raise ValueError(
                f"trust.untrusted_size = {self.trust.untrusted_size!r} is no size of the ladder: "
                f"choose one of {', '.join(self.ladder)}"
            )
        return self

    @property
    def run(self) -> Path:
        """Where sockets and pid files are."""
        return self.state / "run"

    @property
    def registry_host(self) -> str:
        """The edge's name, which is the registry's as it stands in an image reference."""
        return f"{self.server.name}:{self.server.port}"

    @property
    def images(self) -> str:
        """Where images are: `registry_host`, or what `images` stands for in somebody else's
        registry (`HOST/OWNER`); `mayfly.registry.reference.image` makes a reference of it.
        """
        return self.registry.images or self.registry_host

    @property
    def caches(self) -> str:
        """Where layer caches are: `registry_host`, or a repository of somebody else's registry."""
        external = self.registry.cache or f"{self.registry.images}/mayfly-cache"
        return external if self.registry.external else self.registry_host

    @property
    def url(self) -> str:
        """The API's public address."""
        return f"https://{self.registry_host}"

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The ladder, smallest first."""
        rungs = (
            Size(name, rung.cpu, rung.memory_gb * GIB, rung.disk_gb * GIB)
            for name, rung in self.ladder.items()
        )
        return tuple(sorted(rungs, key=lambda s: (s.memory_bytes, s.cpus, s.disk_bytes)))

    @property
    def untrusted_size(self) -> Size:
        """The largest size that a build gets that is not trusted."""
        named = {size.name: size for size in self.sizes}
        return named.get(self.trust.untrusted_size) or self.sizes[:2][-1]


def site_certificates(config: Config) -> tuple[Path, ...]:
    """The site's own CA certificates, sorted; none when the machine has none."""
    chosen = config.golden.site_certificates
    if chosen == "auto":
        return tuple(sorted(Path("/usr/local/share/ca-certificates").rglob("*.crt")))
    return tuple(sorted(chosen))


def runner_certificates(config: Config) -> tuple[Path, ...]:
    """The CA certificates that runners trust beside the public ones, sorted: the site's own, and
    that of somebody else's registry.
    """
    registrys = (Path(config.registry.ca),) if config.registry.ca else ()
    return tuple(sorted({*site_certificates(config), *registrys}))


def load(environ: Mapping[str, str] | None = None) -> Config:
    """The configuration of this process.

    Raises `ConfigError` with every fault found: a file that cannot be read or parsed, an unknown
    name, a wrong type, a value out of bounds. A default file that does not exist is no fault; one
    named by `MAYFLY_CONFIG` is.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("MAYFLY_CONFIG")
    path = Path(named) if named else DEFAULT_FILE
    data: dict[str, Any] = {}
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if named:
            raise ConfigError([f"{path}: no such file (named by MAYFLY_CONFIG)"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from None

    origin = dict.fromkeys(_flatten(data), str(path))
    for name, value in sorted(environ.items()):
        match = re.fullmatch(r"MAYFLY_([A-Z0-9]+)__([A-Z0-9_]+)", name)
        if match:
            section, option = match[1].lower(), match[2].lower()
            data.setdefault(section, {})[option] = _scalar(value, section, option)
            origin[f"{section}.{option}"] = name
    for name, option in (("MAYFLY_STATE", "state"), ("MAYFLY_CACHE", "cache")):
        if environ.get(name):
            data[option] = environ[name]
            origin[option] = name
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError([_fault(e, origin, str(path)) for e in error.errors()]) from None


def _flatten(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in data.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            names.extend(_flatten(value, f"{prefix}{key}."))
    return names


def _scalar(text: str, section: str, option: str) -> Any:
    """An environment value as TOML would read it; text that is not TOML is itself, and so is that
    of an option that is text: a password may look like a number.
    """
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
    model = getattr(Config.model_fields.get(section), "annotation", None)
    field = getattr(model, "model_fields", {}).get(option)
    is_text = field is not None and field.annotation is str
    return text if is_text and not isinstance(value, str) else value


def _fault(error: Any, origin: Mapping[str, str], default: str) -> str:
    where = ".".join(str(part) for part in error["loc"])
    section = where.partition(".")[0]
    # For a default that does not go with what was set: where anything of its section was.
    beside = next(
        (place for name, place in origin.items() if name.startswith(f"{section}.")), default
    )
    source = origin.get(where) or next((origin[p] for p in _parents(where) if p in origin), beside)
    if error["type"] == "extra_forbidden":
        return f"{source}: {where}: unknown option - remove it, or see docs/configuration.md"
    message = error["msg"].removeprefix("Value error, ")
    said = f"{message[:1].lower()}{message[1:]}"
    secret = where.rpartition(".")[2] in SECRET_OPTIONS
    if secret or isinstance(error["input"], Mapping):  # a whole section may have a secret in it
        return f"{source}: {where}: {said}" if where else f"{source}: {said}"
    return f"{source}: {where} = {error['input']!r}: {said}"


def _parents(where: str) -> list[str]:
    parts = where.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def reference() -> str:
    """The configuration reference as Markdown, from the declarations above."""
    lines = [
        "# Configuration",
        "",
        "Generated from `mayfly/config.py` by `python -m mayfly.config`; do not edit.",
        "",
        "`/etc/mayfly/mayfly.toml`, or the file that `MAYFLY_CONFIG` names. Any option of a",
        "section can be given as `MAYFLY_<SECTION>__<OPTION>`, which wins over the file.",
        "",
    ]
    top = {n: f for n, f in Config.model_fields.items() if not _is_section(f.annotation)}
    sections: dict[str, type[BaseModel]] = {"oidc": Issuer, "ladder": Rung}
    lines += _table("Top level", "", {n: f for n, f in top.items() if n not in sections})
    for name, field in Config.model_fields.items():
        if _is_section(field.annotation):
            kind: type[BaseModel] = field.annotation  # type: ignore[assignment]
            lines += _table(f"`[{name}]`", kind.__doc__ or "", kind.model_fields)
    for name, section in sections.items():
        about = top[name].description or ""
        lines += _table(f"`[{name}.NAME]`", about, section.model_fields)
    lines += ["Default ladder:", "", "```toml"]
    for name, rung in DEFAULT_LADDER.items():
        lines += [f"[ladder.{name}]", *(f"{k} = {v}" for k, v in rung.model_dump().items()), ""]
    return "\n".join([*lines[:-1], "```", ""])


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, _Section)


def _table(title: str, about: str, fields: Mapping[str, Any]) -> list[str]:
    rows = [f"## {title}", "", *([about.strip(), ""] if about else [])]
    rows += ["| option | default | meaning |", "| --- | --- | --- |"]
    for name, field in fields.items():
        default = "required" if field.is_required() else f"`{_toml(field.default)}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return [*rows, ""]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


if __name__ == "__main__":
    print(reference(), end="")
