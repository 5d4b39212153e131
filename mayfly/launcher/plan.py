"""Settings to what flow is asked for: buildx's arguments, environment, what to hide. Pure.

named       the files that settings name and that have to be read first
plan        everything, and every fault at once
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from mayfly.build.args import PROXIES, is_remote, parse_fields, pushes, streams
from mayfly.launcher import logins, tags
from mayfly.launcher.settings import PREFIX, SPEC_FIELDS, TABLE
from mayfly.launcher.values import Given, Login, secret_places

LABEL = "org.opencontainers.image."
USUAL_TAGS_FILE = ".tags"
SECRET_VARIABLE = "MAYFLY_SECRET_"  # noqa: S105 - the variable's name
_OURS = frozenset(name for setting in TABLE.values() for name in setting.environ)
"""Variables that are settings, and nobody else's business."""

Files = Mapping[str, str | None]
"""What was read, by name; None for a file that is not there or cannot be read."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step amounts to.

    `argv` are the arguments of `mayfly build`; `environ` is the environment for flow and buildx,
    without settings and with `DOCKER_AUTH_CONFIG`; `farm` the variables that name the farm and
    configure its client. `declares` are the fields of the build spec that settings override.
    `proxies` are those of the build's steps. `secrets` are the values that no log may show.
    `faults` are what is wrong with the settings and `remarks` what else the user should know, one
    line each.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    farm: Mapping[str, str] = field(repr=False)
    ca: str = field(repr=False)
    declares: Mapping[str, Any]
    supersede: bool
    proxies: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    faults: tuple[str, ...]
    remarks: tuple[str, ...]


def named(given: Given) -> tuple[str, ...]:
    """The files whose contents `plan` needs."""
    names = [given.text("tags_file")]
    if not names[0] and not given.words("tags"):
        names = [USUAL_TAGS_FILE]
    if "dockerfile" not in given.raw and not is_remote(given.text("context")):
        names.append(given.text("dockerfile"))
    names += [secret_places(entry)[1] for entry, value in _secrets(given) if value is None]
    return tuple(name for name in names if name)


def plan(given: Given, environ: Mapping[str, str], files: Files, now: datetime) -> Plan:
    """What `given` (of `environ`) asks for. `now` is the image's creation time.

    Nothing raises: what is wrong stands in `faults`, and the rest is planned as well as it can be,
    so that faults beyond the settings can be found too.
    """
    faults, remarks = list(given.faults), list(given.remarks)
    config = _config(given, faults)
    people = tuple(_logins(given, faults))
    kept = _environment(environ) | dict(given.named)
    if people or config:
        kept["DOCKER_AUTH_CONFIG"] = logins.configuration(people, config)
    # Whoever runs the agent has logins too; they are not this pipeline's.
    kept["DOCKER_CONFIG"] = "/nonexistent/mayfly"
    secret_flags = tuple(_secret_flags(given, kept))
    arguments = _arguments(given, environ)
    images = _images(given, environ, files, faults, remarks)
    argv = [
        *("--progress", "quiet" if given.flag("quiet") else "plain"),
        *_build(given),
        *_build_args(arguments, kept),
        *secret_flags,
        *_caches(given),
        *_about(given, environ, now),
        *_own(given),
        *_flags("tag", images),
        *_outputs(given, bool(images), faults),
        *_dockerfile(given, files),
        "--",
        given.text("context"),
    ]
    proxies = [v for name, v in arguments.items() if _is_proxy(name) and v]
    hidden = [*logins.secrets(people, config), *_hidden(given, environ, files, proxies)]
    return Plan(
        argv=tuple(argv),
        environ=kept,
        farm=_farm(given, environ, faults),
        ca=given.text("ca"),
        declares=_declares(given, faults),
        supersede=given.flag("supersede"),
        proxies={n.lower(): v for n, v in arguments.items() if _is_proxy(n) and v is not None},
        secrets=tuple(dict.fromkeys(filter(None, hidden))),
        faults=tuple(faults),
        remarks=tuple(remarks),
    )


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What buildx and git get: neither settings nor the farm's token."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(PREFIX) and name not in _OURS | {"DOCKER_AUTH_CONFIG"}
    }


def _farm(given: Given, environ: Mapping[str, str], faults: list[str]) -> dict[str, str]:
    """MAYFLY_* for the client's configuration: what the step has, and what settings say."""
    found = {n: v for n, v in environ.items() if n.startswith("MAYFLY_") and n not in _OURS}
    url, token = given.text("url"), given.text("token")
    found |= {n: v for n, v in (("MAYFLY_URL", url), ("MAYFLY_TOKEN", token)) if v}
    if url and not token:
        faults.append("token: is needed to use the farm at url - add `token: {from_secret: …}`")
    registry = given.text("farm_registry")
    address = registry or _netloc(url)
    if registry and "/" in registry:
        found |= {"MAYFLY_REGISTRY__KIND": "external", "MAYFLY_REGISTRY__IMAGES": registry}
        address = _netloc(url)
    host, colon, port = address.rpartition(":")
    if address and not (colon and port.isdigit()):
        host, port = address, "443"
    if address and "MAYFLY_CONFIG" not in environ and "MAYFLY_SERVER__NAME" not in environ:
        found |= {"MAYFLY_SERVER__NAME": host, "MAYFLY_SERVER__LISTEN": f"127.0.0.1:{port}"}
    return found


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:  # the client says what is wrong with it
        return ""


def _build(given: Given) -> Iterator[str]:
    if target := given.text("target"):
        yield from ("--target", target)
    if platforms := given.words("platforms"):
        yield from ("--platform", ",".join(platforms))
    if given.flag("no_cache"):
        yield "--no-cache"
    for name in ("provenance", "sbom"):
        if value := given.text(name):
            yield f"--{name}={value}"
    yield from _flags("add-host", given.words("add_host"))
    yield from _flags("ssh", given.words("ssh"))
    contexts = given.pairs("build_contexts")
    yield from _flags("build-context", (f"{n}={v}" for n, v in contexts if v is not None))


def _arguments(given: Given, environ: Mapping[str, str]) -> dict[str, str | None]:
    """Build arguments: those that docker-buildx gives each build, from the environment, proxies,
    and what the pipeline says itself, which goes last and so counts. None: as the environment has
    it, if it does.
    """
    made: dict[str, str | None] = {}
    if (epoch := environ.get("CI_COMMIT_TIMESTAMP", "")).isdigit():
        made["SOURCE_DATE_EPOCH"] = epoch
    made |= {name: value for name in PROXIES if (value := given.text(name))}
    made |= {n: environ[n] for n in given.words("build_args_from_env") if n in environ}
    said = dict(given.pairs("build_args"))
    made |= {
        name: environ.get(name) if _is_proxy(name) and v is None else v for name, v in said.items()
    }
    return made


def _build_args(arguments: Mapping[str, str | None], kept: Mapping[str, str]) -> Iterator[str]:
    """`--build-arg`, by name alone where buildx's environment has that value: what is on a command
    line, everybody on the machine may read. Proxies go another way, with their passwords.
    """
    for name, value in arguments.items():
        if _is_proxy(name):
            continue
        by_name = value is None or kept.get(name) == value
        yield from ("--build-arg", name if by_name else f"{name}={value}")


def _is_proxy(name: str) -> bool:
    return name.lower() in PROXIES


def _secrets(given: Given) -> tuple[tuple[str, str | None], ...]:
    return given.pairs("secrets")


def _secret_flags(given: Given, kept: dict[str, str]) -> Iterator[str]:
    """`--secret`; a value of a map goes through a variable of its own, which `kept` gets."""
    for number, (entry, value) in enumerate(_secrets(given)):
        if value is None:
            yield from ("--secret", entry)
        else:
            kept[f"{SECRET_VARIABLE}{number}"] = value
            yield from ("--secret", f"id={entry},env={SECRET_VARIABLE}{number}")


def _caches(given: Given) -> Iterator[str]:
    yield from _flags("cache-from", given.words("cache_from"))
    yield from _flags("cache-to", given.words("cache_to"))
    for image in given.words("cache_images"):
        yield from ("--cache-from", f"type=registry,ref={image}")
        how = "mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true"
        yield from ("--cache-to", f"type=registry,ref={image},{how}")


def _about(given: Given, environ: Mapping[str, str], now: datetime) -> Iterator[str]:
    """Labels and annotations: what CI knows, then what the pipeline says."""
    source = environ.get("CI_REPO_CLONE_URL") or environ.get("CI_REPO_URL", "")
    ref = environ.get("CI_COMMIT_REF", "")
    usual = {
        "created": now.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "source": _without_login(source),
        "revision": environ.get("CI_COMMIT_SHA", ""),
        "url": environ.get("CI_REPO_URL", ""),
        "version": tags.version(ref),
    }
    if not given.flag("default_labels"):
        usual = {}
    known = {LABEL + name: value for name, value in usual.items() if value}
    labels = known | {n: v or "" for n, v in given.pairs("labels")}
    notes = known | {n: v or "" for n, v in given.pairs("annotations")}
    yield from _flags("label", (f"{name}={value}" for name, value in labels.items()))
    level = "index,manifest:" if len(given.words("platforms")) > 1 else ""
    yield from _flags("annotation", (f"{level}{name}={value}" for name, value in notes.items()))


def _without_login(url: str) -> str:
    """An address without name and password, which some forges put into clone addresses."""
    scheme, there, rest = url.partition("://")
    if not there:
        return url
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _own(given: Given) -> Iterator[str]:
    own = {
        "size": given.text("size"),
        "repo": given.text("mayfly_repo"),
        "spec": given.text("spec"),
        "cache-key": given.text("cache_key"),
    }
    yield from (f"--mayfly-{name}={value}" for name, value in own.items() if value)
    if not given.flag("grow"):
        yield "--mayfly-no-grow"


def _images(
    given: Given,
    environ: Mapping[str, str],
    files: Files,
    faults: list[str],
    remarks: list[str],
) -> tuple[str, ...]:
    """The whole names of the image, none where nothing is to be named."""
    repos = given.words("repo")
    found = _tags(given, environ, files, faults, remarks) if repos else ()
    if not repos and "repo" not in given.raw and _pushes(given) and not given.words("output"):
        faults.append("repo: is missing - name the image, or set `dry_run` or `output`")
    for repo in repos:
        if ":" in repo.rpartition("/")[2] or "@" in repo:
            faults.append(f"repo: {repo[:80]!r} has a tag - put it into `tags`")
            return ()
    wrong = tags.wrong(found)
    faults += [f"tags: {tag[:40]!r} is no tag - use letters, digits and _ . -" for tag in wrong]
    return tuple(f"{repo}:{tag}" for repo in repos for tag in found if tag not in wrong)


def _tags(
    given: Given,
    environ: Mapping[str, str],
    files: Files,
    faults: list[str],
    remarks: list[str],
) -> tuple[str, ...]:
    said = given.words("tags")
    if file := given.text("tags_file"):
        text = files.get(file)
        if text is None:
            faults.append(f"tags_file: {file[:80]} cannot be read - make it in an earlier step")
        said = tags.in_file(text or "")
    elif not said:
        said = tags.in_file(files.get(USUAL_TAGS_FILE) or "")
    if not given.flag("auto_tag"):
        return tuple(dict.fromkeys(said or ("latest",)))
    ref, branch = environ.get("CI_COMMIT_REF", ""), environ.get("CI_REPO_DEFAULT_BRANCH", "")
    suffix = given.text("default_suffix")
    made = tags.automatic(ref, branch, given.text("default_tag"), suffix)
    if made is None:
        name = ref.rpartition("/")[2][:60]
        faults.append(f"auto_tag: the git tag {name!r} is no version - name it v1.2.3, or set tags")
    if not made and not said:
        remarks.append(f"auto_tag has no tag for {ref or 'this build'}: nothing is pushed")
    return tuple(dict.fromkeys((*(made or ()), *said)))


def _pushes(given: Given) -> bool:
    return not given.flag("dry_run")


def _outputs(given: Given, has_images: bool, faults: list[str]) -> Iterator[str]:
    """`--push`, or the outputs and beside them a push."""
    outputs = given.words("output")
    push = has_images and _pushes(given)
    for output in outputs:
        fields = parse_fields(output)
        if output == "-" or (streams(fields) and fields.get("type") in {"tar", "oci", None}):
            faults.append("output: a step's output is its log - write a file: type=…,dest=FILE")
        if pushes(fields) and given.flag("dry_run"):
            faults.append("output: pushes, and dry_run says not to - leave out one of them")
    if not outputs:
        yield from ("--push",) if push else ()
        return
    yield from _flags("output", outputs)
    if push and not any(pushes(parse_fields(output)) for output in outputs):
        yield from ("--output", "type=registry")


def _dockerfile(given: Given, files: Files) -> Iterator[str]:
    """docker-buildx takes it from the step's directory. Where no name was given, and none of the
    usual name is there, it is the one beside the context.
    """
    if "dockerfile" in given.raw or files.get(given.text("dockerfile")) is not None:
        yield from ("--file", given.text("dockerfile"))


def _declares(given: Given, faults: list[str]) -> dict[str, Any]:
    """The build spec's fields that settings have, within that contract's bounds."""
    said = {name: given.values[name] for name in SPEC_FIELDS if name in given.values}
    if not said:
        return {}
    from pydantic import ValidationError

    from mayfly.spec import SpecForm

    try:
        SpecForm.model_validate(said)
    except ValidationError as error:
        for each in error.errors():
            name = str(each["loc"][0])
            faults.append(f"{name}: {each['msg'][0].lower()}{each['msg'][1:]}")
            said.pop(name, None)
    return said


def _config(given: Given, faults: list[str]) -> dict[str, Any]:
    if not (text := given.text("config")):
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        faults.append("config: is not Docker's config.json")
        return {}
    return found


def _logins(given: Given, faults: list[str]) -> Iterator[Login]:
    """The one of `registry`, `username` and `password`, then `logins`."""
    username, password = given.text("username"), given.text("password")
    if bool(username) != bool(password):
        missing = "password" if username else "username"
        faults.append(f"{missing}: is missing - username and password go together")
    if username and password:
        yield Login(given.text("registry"), username, password)
    yield from given.logins()


def _hidden(
    given: Given, environ: Mapping[str, str], files: Files, proxies: Iterable[str]
) -> Iterator[str]:
    """What else must not be seen: the token, secrets of the build, passwords of proxies."""
    yield from (given.text("token"), given.text("password"))
    yield environ.get("CI_NETRC_PASSWORD", "")  # Woodpecker's own, at the forge
    for entry, value in _secrets(given):
        if value is not None:
            yield value
            continue
        variable, file = secret_places(entry)
        yield from (environ.get(variable, ""), files.get(file) or "")
    for proxy in proxies:
        authority = _login_in(proxy)
        yield from (authority, authority.partition(":")[2])


def _login_in(url: str) -> str:
    """`USER:PASSWORD` of a proxy's address, which may be without `http://`."""
    return (url.partition("://")[2] or url).partition("/")[0].rpartition("@")[0]


def _flags(flag: str, values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield from (f"--{flag}", value)
