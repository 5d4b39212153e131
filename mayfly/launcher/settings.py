"""The plugin's settings, declared once: validation, documentation and JSON schema come from here.

Names and meanings are those of Woodpecker's docker-buildx plugin
(https://codeberg.org/woodpecker-plugins/docker-buildx) wherever that has one, so that a pipeline
moves over by its image's name; what makes no sense on a farm is taken and said to be without effect
(`IGNORED`), or refused with what to do instead (`REFUSED`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "PLUGIN_"
"""Woodpecker hands a setting `some-name` to a plugin as `PLUGIN_SOME_NAME`."""


class Kind(StrEnum):
    """What a setting may hold."""

    TEXT = "text"
    FLAG = "flag"
    INTEGER = "integer"
    NUMBER = "number"
    WORDS = "list"
    PAIRS = "map or list of `NAME=VALUE`"
    ENTRIES = "list of `key=value,…`"
    KEYS = "list of `ID` or `ID=FILE,…`"
    SECRETS = "map, or list of `id=NAME,…`"
    LOGINS = "list of maps"


class Use(StrEnum):
    """What becomes of a setting."""

    USED = "used"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `doc` is one sentence for people: of one that is not used, why it has no effect,
    or what to do instead. `default` is what an absent one amounts to, as it would be written.
    `secret` values never appear in a log. `environ` names variables that count where it is absent,
    and that nothing else of a build gets.
    """

    name: str
    kind: Kind
    doc: str
    default: str = ""
    aliases: tuple[str, ...] = ()
    secret: bool = False
    use: Use = Use.USED
    environ: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


def _used(name: str, kind: Kind, doc: str, default: str = "", *aliases: str) -> Setting:
    return Setting(name, kind, doc, default, aliases)


def _ignored(name: str, kind: Kind, doc: str, *aliases: str) -> Setting:
    return Setting(name, kind, doc, aliases=aliases, use=Use.IGNORED)


def _refused(name: str, kind: Kind, doc: str, *, secret: bool = False) -> Setting:
    return Setting(name, kind, doc, secret=secret, use=Use.REFUSED)


_SIZE = "overrides the build spec's field of that name"
_NO_DAEMON = "there is no Docker daemon in a build"
_ECR = "log in with `username: AWS` and `aws ecr get-login-password` of an earlier step instead"

IMAGE = (
    _used(
        "repo",
        Kind.WORDS,
        "names of the image without tags; `images/OWNER/NAME` stands in the farm's registry, "
        "any other is left alone",
    ),
    _used("tags", Kind.WORDS, "tags of the image", "latest", "tag"),
    _used(
        "tags_file",
        Kind.TEXT,
        "file with tags, one a line or comma-separated; goes before `tags`. A file `.tags` is read "
        "where neither is given",
        "",
        "tag_file",
    ),
    _used(
        "auto_tag",
        Kind.FLAG,
        "tags after the git tag (`x`, `x.y`, `x.y.z`), and `default_tag` on the default branch; "
        "`tags` come in addition. On another branch without `tags` nothing is pushed",
        "false",
    ),
    _used("default_tag", Kind.TEXT, "what `auto_tag` calls the default branch's image", "latest"),
    _used(
        "default_suffix", Kind.TEXT, "put behind what `auto_tag` makes, after a `-`", "",
        "auto_tag_suffix",
    ),
    _used("labels", Kind.PAIRS, "labels of the image", "", "label"),
    _used("annotations", Kind.PAIRS, "OCI annotations of the image's manifest"),
    _used(
        "default_labels",
        Kind.FLAG,
        "labels and annotations `org.opencontainers.image.*` with source, revision, creation time, "
        "address and version",
        "true",
        "auto_labels", "auto_label", "default_label",
    ),
    _used("dry_run", Kind.FLAG, "build and do not push", "false"),
    _used(
        "output",
        Kind.ENTRIES,
        "other outputs, as `type=oci,dest=image.tar`; the image is pushed as well, unless one of "
        "them pushes it or `dry_run` is set",
    ),
)  # fmt: skip
BUILD = (
    _used("context", Kind.TEXT, "directory with the sources, or an address of git", "."),
    _used("dockerfile", Kind.TEXT, "the Dockerfile, from the step's directory", "Dockerfile"),
    _used("target", Kind.TEXT, "the Dockerfile's stage to build"),
    _used("platforms", Kind.WORDS, "platforms to build for", "", "platform"),
    _used("build_args", Kind.PAIRS, "build arguments", "", "build_arg", "args"),
    _used("build_args_from_env", Kind.WORDS, "variables of the step that become build arguments"),
    _used("build_contexts", Kind.PAIRS, "named contexts", "", "build_context"),
    _used(
        "secrets",
        Kind.SECRETS,
        "secrets for `RUN --mount=type=secret`: a map of ids and values (`from_secret`), or as "
        "`id=NAME,src=FILE` and `id=NAME,env=VARIABLE`; their values never appear in a log",
    ),
    _used("ssh", Kind.KEYS, "SSH agents or keys for `RUN --mount=type=ssh`, as `default`"),
    _used("add_host", Kind.WORDS, "more `NAME:ADDRESS` for the build's hosts file"),
    _used("no_cache", Kind.FLAG, "build every step anew", "false"),
    _used("provenance", Kind.TEXT, "provenance attestation, as for buildx"),
    _used("sbom", Kind.TEXT, "SBOM attestation, as for buildx"),
    _used("quiet", Kind.FLAG, "show no steps while it builds", "false"),
    _used("env_file", Kind.TEXT, "file of `NAME=VALUE` lines that count where a variable is unset"),
    _used("http_proxy", Kind.TEXT, "build argument of that name, in both spellings"),
    _used("https_proxy", Kind.TEXT, "build argument of that name, in both spellings"),
    _used("no_proxy", Kind.TEXT, "build argument of that name, in both spellings"),
)
CACHE = (
    _used("cache_from", Kind.ENTRIES, "more caches to read; the farm keeps one by itself"),
    _used("cache_to", Kind.ENTRIES, "more caches to write"),
    _used("cache_images", Kind.WORDS, "images that are read and written as caches"),
    _used("cache_key", Kind.TEXT, "the farm's layer cache of the repo to use; default: the target"),
)
LOGIN = (
    Setting(
        "registry", Kind.TEXT, "registry of `username` and `password`", "docker.io",
        environ=("DOCKER_REGISTRY",),
    ),
    Setting("username", Kind.TEXT, "name to log in with", environ=("DOCKER_USERNAME",)),
    Setting(
        "password", Kind.TEXT, "password or token to log in with", secret=True,
        environ=("DOCKER_PASSWORD",),
    ),
    Setting(
        "logins",
        Kind.LOGINS,
        "more logins: `registry`, `username` and `password` of each",
        secret=True,
    ),
    Setting("config", Kind.TEXT, "Docker's config.json, of which `auths` count", secret=True),
)  # fmt: skip
FARM = (
    Setting(
        "url", Kind.TEXT, "the farm's address, as `https://registry.mayfly.internal:5000`",
        environ=("MAYFLY_URL",),
    ),
    Setting(
        "token", Kind.TEXT, "the token for it", secret=True, environ=("MAYFLY_TOKEN",),
    ),
    Setting(
        "ca", Kind.TEXT, "the farm's CA, as PEM text or the name of a file", environ=("MAYFLY_CA",),
    ),
    _used(
        "farm_registry",
        Kind.TEXT,
        "what `images/` stands for, where that is not the host of `url`: `HOST:PORT` of the farm's "
        "own registry, or `HOST/OWNER` of somebody else's",
    ),
    _used("mayfly_repo", Kind.TEXT, "repo that images and caches belong to; default: CI_REPO"),
    _used("size", Kind.TEXT, "a size of the farm by name, which goes before everything else"),
    _used("cpu", Kind.INTEGER, f"vCPUs that the build needs; {_SIZE}"),
    _used("memory_gb", Kind.NUMBER, f"GiB of memory that the build needs; {_SIZE}"),
    _used("disk_gb", Kind.NUMBER, f"GiB of disk that the build needs; {_SIZE}"),
    _used("time_budget_min", Kind.NUMBER, f"minutes that the build may take; {_SIZE}"),
    _used(
        "oom_retry",
        Kind.FLAG,
        f"whether a build that ran out of memory goes on one size up; {_SIZE}",
    ),
    _used("spec", Kind.TEXT, "build spec to use, or `none`; default: the nearest .build-spec.ncl"),
    _used("grow", Kind.FLAG, "whether the VM may be given more memory while it runs", "true"),
    _used(
        "supersede",
        Kind.FLAG,
        "end older builds of the same repo, branch and target that still run or wait",
        "false",
    ),
)  # fmt: skip
IGNORED = (
    _ignored("email", Kind.TEXT, "registries no longer ask for it"),
    _ignored("pull_image", Kind.FLAG, "a fresh VM has no image that it could take instead"),
    _ignored("compress", Kind.FLAG, "BuildKit sends only the files that a Dockerfile uses"),
    _ignored("mirror", Kind.TEXT, "where runners pull from is the farm's own setting"),
    _ignored("purge", Kind.FLAG, "nothing of a build is left: its VM is destroyed"),
    _ignored("storage_driver", Kind.TEXT, _NO_DAEMON),
    _ignored("storage_path", Kind.TEXT, _NO_DAEMON),
    _ignored("bip", Kind.TEXT, _NO_DAEMON),
    _ignored("mtu", Kind.TEXT, _NO_DAEMON),
    _ignored("custom_dns", Kind.WORDS, "runners have the farm's resolvers"),
    _ignored("custom_dns_search", Kind.WORDS, "runners have the farm's resolvers"),
    _ignored("ipv6", Kind.FLAG, "runners reach the internet by IPv4"),
    _ignored("experimental", Kind.FLAG, _NO_DAEMON),
    _ignored("debug", Kind.FLAG, _NO_DAEMON),
    _ignored("daemon_off", Kind.FLAG, _NO_DAEMON),
    _ignored("buildkit_debug", Kind.FLAG, "BuildKit's own log stays in the VM"),
    _ignored("buildkit_driveropt", Kind.WORDS, "the builder is a VM; see `http_proxy` for proxies"),
    _ignored("custom_cert_store", Kind.TEXT, "runners trust what the farm's operator configured"),
)
REFUSED = (
    _refused(
        "insecure",
        Kind.FLAG,
        "registries are spoken to by TLS; ask the farm's operator to trust its CA (`registry.ca`)",
    ),
    _refused(
        "buildkit_config",
        Kind.TEXT,
        "runners have the farm's BuildKit configuration: leave it out",
    ),
    _refused("aws_access_key_id", Kind.TEXT, _ECR, secret=True),
    _refused("aws_secret_access_key", Kind.TEXT, _ECR, secret=True),
    _refused("aws_region", Kind.TEXT, _ECR),
    _refused("ecr_create_repository", Kind.FLAG, "make the repository in an earlier step"),
    _refused("ecr_lifecycle_policy", Kind.TEXT, "set it in an earlier step"),
    _refused("ecr_repository_policy", Kind.TEXT, "set it in an earlier step"),
    _refused("ecr_scan_on_push", Kind.FLAG, "set it in an earlier step"),
    _refused("remote_builders", Kind.WORDS, "each build has a VM of the farm: leave it out"),
    _refused("ssh_key", Kind.TEXT, "it is for remote builders: leave it out", secret=True),
)

GROUPS: Mapping[str, tuple[Setting, ...]] = {
    "The image": IMAGE,
    "The build": BUILD,
    "Caches": CACHE,
    "Logins": LOGIN,
    "The farm": FARM,
    "Taken, without effect": IGNORED,
    "Refused": REFUSED,
}
"""All of them, as the documentation has them."""

TABLE: Mapping[str, Setting] = {
    setting.name: setting for group in GROUPS.values() for setting in group
}
BY_NAME: Mapping[str, Setting] = {
    name: setting for setting in TABLE.values() for name in setting.names
}
"""By each name that a setting goes by."""

SPEC_FIELDS = ("cpu", "memory_gb", "disk_gb", "time_budget_min", "oom_retry")
"""Settings that are fields of a build spec, with the bounds of those (`mayfly.spec.SpecForm`)."""
