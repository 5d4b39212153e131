"""One build, from request to outcome. Read this first: every other file is a step of it.

    prepare     arguments, repo name, files, build spec: what is wrong is said before all else
    hold        the orchestrator promises a runner (a lease); heartbeats keep the promise
    ready       a VM of this build's own is there; buildx's builder was made meanwhile
    attempt     one runner, and as many connections to it as it takes
    connection  SSH through the edge's relay, BuildKit's socket forwarded, buildx beside the context
    report      the orchestrator's verdict: done, or another attempt on another runner
    result      one outcome, whose exit status the process ends with

The build's bytes go from here to the runner through the edge; the orchestrator sees the request,
the heartbeats, the log and the report. A connection that breaks is no outcome: while the lease
has its runner, another one goes to the same VM, where every finished step is CACHED. Whatever way
this ends (a failure, Ctrl-C, the lease withdrawn), the orchestrator is told and the runner
destroyed; when we are killed, the missing heartbeats say it too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mayfly import tools
from mayfly.build import bake, buildx, check, declared, dockerfile, pair, progress, repo
from mayfly.build import result as results
from mayfly.build import stdin as standard_input
from mayfly.build.again import again as goes_on
from mayfly.build.args import BuildArgs, parse
from mayfly.build.holding import Api, Show, held, patiently, ready, still_ready
from mayfly.build.mask import Mask
from mayfly.build.reconnect import PAUSE_S, STALLS, Way
from mayfly.build.result import Attempt, Result
from mayfly.build.stop import signals, stoppable
from mayfly.config import Config, Registry
from mayfly.errors import Denied, InfrastructureError, MayflyError, UsageError, together
from mayfly.model import MOST_IMAGES, BuildSpec, LeaseRequest, Outcome
from mayfly.registry import grants
from mayfly.registry.reference import host_of, repository_of
from mayfly.wire import LeaseJson, VerdictJson

if TYPE_CHECKING:  # what comes after the lease is loaded after asking for it
    import ssl

    from mayfly.build import ssh

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """A build that nothing is known to be wrong with yet.

    `bases` are the images that its Dockerfiles name, as far as they can be read off. `registry` is
    the farm's choice of a registry, `caches` where in it layer caches are. `spec` is what the repo
    declares, `languages` what its files say it is written in. `pipeline` is the CI's number of what
    it belongs to; `supersede` ends older builds of the same that belong to another. `proxies` are
    those of the build's steps (`args.PROXIES`), whose passwords no list of processes shows. No log
    shows `secrets`. `watching` is who takes buildx's output where that is not for people.
    """

    args: BuildArgs
    repo: str
    ref: str
    event: str
    registry_host: str
    buildx: Path
    environ: Mapping[str, str]
    bases: tuple[str, ...] = ()
    registry: Registry = field(default_factory=Registry)
    caches: str = ""
    spec: BuildSpec | None = None
    languages: tuple[str, ...] = ()
    pipeline: str = ""
    supersede: bool = False
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    watching: progress.Watching | None = None


def prepare(
    argv: Sequence[str],
    config: Config,
    environ: Mapping[str, str],
    cwd: Path,
    *,
    verb: str = "build",
) -> Request:
    """The request in `argv` (what follows the verb), checked as far as it can be here.

    `verb` is `build` or `bake`. Raises `UsageError` (a flag, the definition, a context, a
    Dockerfile, a name, what is configured for somebody else's registry), `SchemaError`
    (its build spec), `Denied` (a push to a name that this repo's builds may not write) and
    `MachineUnfit` (buildx is not built): once the arguments can be read, all of that at once
    (`errors.together`).
    """
    if verb == "bake":
        args = definition(argv, config, environ)
    else:
        args = parse(argv, config.images, environ, docker=check.docker_answers(environ))
    found: list[MayflyError] = []
    name, program = "", Path()
    spec: BuildSpec | None = None
    languages: tuple[str, ...] = ()
    with _kept(found):
        check.files(args, cwd)
    with _kept(found):
        check.results(args, cwd)
    with _kept(found):
        check.leave(args, environ, cwd)
    if config.registry.external:
        from mayfly.build import access

        with _kept(found):
            access.check(config.registry)
    there = check.contexts_there(args, cwd)
    if not (there or args.repo or environ.get("CI_REPO")):
        raise together(found)  # nothing is left that could be looked at
    with _kept(found):
        name = grants.check_repo(repo.name(args, environ, cwd))
    if name:
        with _kept(found):
            _check_tags(args, name, config.registry_host)
    if there:
        with _kept(found):
            spec, languages = declared.declared(args, environ, cwd)
    with _kept(found):
        program = buildx_of(config)
    if found:
        raise together(found)
    return Request(
        args=args,
        repo=name,
        ref=repo.ref(environ, cwd if args.remote or args.context == "-" else cwd / args.context),
        event=environ.get("CI_PIPELINE_EVENT") or "manual",
        registry_host=config.registry_host,
        buildx=program,
        environ=environ,
        bases=dockerfile.named(args.targets, cwd),
        registry=config.registry,
        caches=config.caches,
        spec=spec,
        languages=languages,
        pipeline=environ.get("CI_PIPELINE_NUMBER", ""),
        proxies={name.lower(): environ[name] for name in args.proxies if name in environ},
    )


@contextmanager
def _kept(found: list[MayflyError]) -> Iterator[None]:
    """What the block raises goes into `found`: there may be more to say."""
    try:
        yield
    except MayflyError as error:
        found.append(error)


def definition(argv: Sequence[str], config: Config, environ: Mapping[str, str]) -> BuildArgs:
    """The definition that `mayfly bake` with `argv` builds from, as buildx resolves it.

    Raises `UsageError` and `MachineUnfit` as `prepare` does.
    """
    read = partial(bake.printed, lambda: buildx_of(config), environ)
    docker = check.docker_answers(environ)
    return bake.parse(argv, config.images, read, docker=docker)


def buildx_of(config: Config) -> Path:
    """The buildx that builds are made with. Raises `MachineUnfit` when it is not built."""
    return tools.tools_dir(config.cache) / "buildx"


def _check_tags(args: BuildArgs, name: str, registry_host: str) -> None:
    """What the registry would refuse after a whole build, said now: as far as the repo goes.

    The orchestrator, which knows whether the build is trusted, looks at it again when it is asked.
    """
    if len(args.pushed) > MOST_IMAGES:
        raise UsageError(
            f"{len(args.pushed)} names of images are to be pushed, and a build may have "
            f"{MOST_IMAGES}",
            hint="push fewer, and copy the rest in the registry",
        )
    images = _pushes(args, registry_host)
    denied = [image for image in images if not grants.may_be_named(name, image)]
    if denied:
        raise Denied(
            f"a build of repo {name} may not push to {', '.join(denied)}",
            hint=f"use -t {' or '.join(grants.image_names(name))}, or another --mayfly-repo",
        )


def _pushes(args: BuildArgs, registry_host: str) -> tuple[str, ...]:
    """The repositories of the farm's own registry that the build pushes to, each once."""
    ours = (repository_of(tag) for tag in args.pushed if host_of(tag) == registry_host)
    return tuple(dict.fromkeys(ours))


async def build(request: Request, api: Api, config: Config, show: Show) -> Result:
    """The whole build; `show` gets a line now and then until buildx takes over the terminal.

    Returns for every outcome that an attempt reached. Raises `Cancelled` and `Terminated` for
    signals, and the orchestrator's error when no runner came or the lease was withdrawn.
    """
    keys = pair.new()
    wanted = LeaseRequest(
        repo=request.repo,
        ssh_public_key=keys.public,
        size=request.args.size,
        ref=request.ref,
        event=request.event,
        target=request.args.target,
        languages=request.languages,
        spec=request.spec,
        grow=request.args.grow,
        pushes=_pushes(request.args, request.registry_host),
        pipeline=request.pipeline,
        supersede=request.supersede,
        keep_min=request.args.keep_min,
    )
    attempts: list[Attempt] = []
    with buildx.folder() as folder:
        async with (
            stoppable() as stop,
            signals(stop, folder.remove),
            held(api, wanted, every_s=config.lease.heartbeat_s, stop=stop) as (lease, holder, page),
            _meanwhile(_prepared(request, folder)) as prepared,
            progress.uploading(partial(holder.append_log, lease)) as log,
        ):
            show(f"build {lease} of {request.repo}: {page}")
            from mayfly.build import ssh

            key = ssh.loaded(keys)
            while True:
                view = await ready(holder, lease, show)
                await prepared
                attempt = await _attempt(request, view, holder, key, folder, log, show)
                attempts.append(attempt)
                with suppress(MayflyError):
                    await patiently(log.flush)
                verdict = await patiently(partial(_report, request, attempt, holder, view))
                if verdict["verdict"] != "retry":
                    break
                attempts[-1] = replace(attempt, outcome=Outcome(verdict["outcome"]), error=None)
                line = f"attempt {len(attempts)} ended as {verdict['outcome']}: {verdict['reason']}"
                log.write(f"{line}\n".encode())
    outcome = Outcome(verdict["outcome"])
    result = Result(
        lease,
        outcome,
        tuple(attempts),
        reason=verdict["reason"],
        kept_until=verdict["kept_until"] or "",
    )
    if request.args.metadata_file and attempt.outcome is Outcome.SUCCEEDED:
        results.merge_metadata(Path(request.args.metadata_file), result)
    return result


async def _prepared(request: Request, folder: buildx.Folder) -> None:
    """What is made while we wait for the runner: buildx's name for the socket that will be
    forwarded, and a copy of standard input where the build reads it.
    """
    argv = buildx.create_argv(request.buildx, folder)
    await progress.quietly(argv, buildx.environment(request.environ, request.args, folder))
    if request.args.stdin:
        await standard_input.spool(0, folder.stdin)


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Work that goes on beside the block, and ends with it at the latest."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _attempt(
    request: Request,
    view: LeaseJson,
    api: Api,
    key: ssh.Key,
    folder: buildx.Folder,
    log: progress.Log,
    show: Show,
) -> Attempt:
    """One runner. Raises how the lease ended when that is why the runner cannot be reached.

    A build that never began is tried again there, and not for ever: nothing but a missing record
    says so where buildx draws, and what fails each time may be the user's.
    """
    began_s = time.monotonic()
    way, stalls = Way(began_s), 0
    while True:
        reached_s = time.monotonic() - began_s
        again = way.losses > 0
        attempt = await _connection(request, view, api.tls, key, folder, log, show, again=again)
        if way.losses:
            times = {**attempt.timings_s, "reconnect": round(reached_s, 3)}
            attempt = replace(attempt, reconnects=way.losses, timings_s=times)
        if not attempt.lost and attempt.outcome is not Outcome.DENIED:
            return attempt
        stalls = stalls + 1 if attempt.stalled else 0
        if stalls > STALLS:
            return attempt
        now = await still_ready(api, view, wait_s=PAUSE_S if attempt.lost else 0)
        if now["attempt"] > view["attempt"]:
            return attempt
        view = now
        way = way.broken(time.monotonic(), opened=attempt.opened)
        if not attempt.lost or way.given_up(time.monotonic()):
            return attempt
        if attempt.opened and request.args.stdout:
            return results.half_written(attempt)
        if way.news and attempt.error:
            line = f"{attempt.error.message}: {results.AGAIN}"
            show(line)
            log.write(f"{line}\n".encode())


async def _connection(
    request: Request,
    view: LeaseJson,
    tls: ssl.SSLContext | None,
    key: ssh.Key,
    folder: buildx.Folder,
    log: progress.Log,
    show: Show,
    *,
    again: bool,
) -> Attempt:
    """One connection, one buildx. What breaks on the way is the outcome so far."""
    from mayfly.build import access, bases, cache, ssh

    args = request.args
    metadata = Path(args.metadata_file or folder.metadata)
    relay = ssh.relay_of(view, tls)
    keys = request.spec.cache_keys if request.spec else ()
    zone, others = cache.zones(view["terms"])
    where, *beside = (
        cache.references(request.caches, request.repo, args, keys, each) if args.builds else {}
        for each in (zone, *others)
    )
    imported = [name for each in beside for name in each.values()]
    started_at = time.monotonic()
    granting = access.granted(
        request.registry,
        request.registry_host,
        request.caches,
        relay,
        folder,
        request.environ,
        reads=[*request.bases, *args.reads, *imported],
        writes=[*args.writes, *where.values()],
        proxies=request.proxies,
    )
    unreadable = ""
    try:
        async with (
            granting as granted,
            _meanwhile(cache.found(granted.door, where, beside)) as asked,
            ssh.connect(relay, key) as tunnel,
        ):
            await tunnel.forward(folder.socket)
            if again and not await tunnel.alive():
                raise InfrastructureError("the runner's BuildKit does not answer")
            for line in () if again else granted.warnings:
                show(line)
            caches = await asked
            if again or view["attempt"] > 1:
                args, caches = goes_on(args, caches)
            folder.write_plan(buildx.plan(args, caches))
            connect_s = time.monotonic() - started_at
            ran = await progress.run(
                buildx.build_argv(request.buildx, args, folder, caches),
                buildx.history_argv(request.buildx),
                {**buildx.environment(request.environ, args, folder), **granted.environment},
                log,
                asked=args.progress,
                stdin=folder.stdin if args.stdin else None,
                lost=tunnel.lost,
                mask=Mask(request.secrets),
                watching=request.watching,
                recorded=args.builds,
            )
            alive = ran.status == 0 or await tunnel.alive()
            if ran.status and alive:
                ours = bases.of(granted.host, ran.timeline.unread)
                unreadable = await bases.unreadable(granted.door, ours)
    except (InfrastructureError, Denied) as error:
        lost = isinstance(error, InfrastructureError)
        return Attempt(view["size"]["name"], Outcome(error.code), error=error, lost=lost)
    return results.attempt(
        view, ran, metadata, alive=alive, connect_s=connect_s, unreadable=unreadable
    )


async def _report(request: Request, attempt: Attempt, api: Api, view: LeaseJson) -> VerdictJson:
    """With verdict `done` the lease is over and the VM on its way out; with `retry` another comes,
    with what this one has done where that can be kept.
    """
    pushed = request.args.pushed if attempt.outcome is Outcome.SUCCEEDED else ()
    return await api.report(
        view["id"],
        outcome=attempt.outcome,
        attempt=view["attempt"],
        digest=attempt.digest,
        timings_s=attempt.timings_s,
        images=pushed,
    )
