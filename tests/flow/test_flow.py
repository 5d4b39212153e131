"""The whole story with a scripted farm, a real SSH server and a buildx that does as it is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mayfly import flow
from mayfly.build import args, bake, cache, holding, pair, progress, reconnect, ssh
from mayfly.build import result as results
from mayfly.build.result import Result
from mayfly.config import Config
from mayfly.errors import (
    BudgetExceeded,
    Cancelled,
    Denied,
    InfrastructureError,
    QueueTimeout,
    Terminated,
)
from mayfly.model import BuildSpec, Outcome
from tests.build.fake_runner import LEASE, TOKEN, FakeRunner, fake_runner, pair_of
from tests.build.test_buildx import UNTRUSTED
from tests.build.test_ssh import echo
from tests.build.third_party import third_party
from tests.flow.fake_farm import FakeFarm

HOST = "registry.mayfly.internal:5000"
CACHE = f"{HOST}/cache/trusted/o/r/default"
OTHER_KEY = ssh.public_line(ssh.new_key())
DIGEST = "sha256:" + "ab" * 32
# A buildx that keeps notes, speaks to the forwarded socket, and then does what BEHAVE says.
BUILDX = """
    #!/usr/bin/env python3
    import json, os, socket, sys, time
    words = sys.argv[1:]
    with open(os.environ["NOTES"], "a") as notes:
        print(json.dumps(words), file=notes)
    if words[0] == "create":
        sys.exit(0)
    path = os.path.join(os.path.dirname(os.environ["BUILDX_CONFIG"]), "buildkitd.sock")
    with open(os.path.join(os.environ["DOCKER_CONFIG"], "config.json")) as config:
        logins = json.load(config)
    with open(os.environ["NOTES"] + ".logins", "w") as notes:
        json.dump(logins, notes)
    buildkit = socket.socket(socket.AF_UNIX)
    buildkit.connect(path)
    buildkit.sendall(b"hello")
    assert buildkit.recv(5) == b"hello"
    if words[0] == "bake":
        os.link(words[words.index("--file") + 1], os.environ["NOTES"] + ".plan")
    behave, _, once = os.environ["BEHAVE"].partition("-")
    if once and os.path.exists(os.environ["NOTES"] + ".once"):
        behave = ""
    elif once:
        open(os.environ["NOTES"] + ".once", "w").close()
    if "-" in words:
        with open(os.environ["NOTES"] + ".stdin", "a") as notes:
            notes.write(sys.stdin.read() + ";")
    if behave == "stall":
        if words[0] != "history":
            print('#0 building with "mayfly" instance', file=sys.stderr, flush=True)
        sys.exit(1)
    print("#1 [1/1] RUN x", file=sys.stderr, flush=True)
    if behave == "fail":
        print("ERROR: that is what BuildKit says", file=sys.stderr)
        sys.exit(1)
    if behave == "tell":
        for piece in (b"#1 0.1 it is hus", b"h-hus", b"h, and #1 PASS\\n"):
            os.write(2, piece)
            time.sleep(0.1)
    if behave == "lose":
        buildkit.recv(1)
        sys.exit(1)
    if behave == "hang":
        with open(os.environ["NOTES"] + ".hanging", "w") as notes:
            print(os.getpid(), file=notes)
        time.sleep(60)
    if behave == "unread":
        print("#2 [internal] load metadata for registry.mayfly.internal:5000/images/base/x:1\\n"
              "#2 ERROR: 503", file=sys.stderr)
        sys.exit(1)
    if behave == "unpushed":
        print("#2 exporting to image\\n#2 pushing layers\\n#2 ERROR: no", file=sys.stderr)
        sys.exit(1)
    print("#1 CACHED", file=sys.stderr)
    file = words[words.index("--metadata-file") + 1]
    with open(file, "w") as out:
        json.dump({"containerimage.digest": "sha256:" + "ab" * 32, "theirs": 1}, out)
"""


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> ssh.Key:
    made = ssh.new_key()
    monkeypatch.setattr(pair, "new", lambda: pair_of(made))
    return made


@pytest.fixture
async def runner(tmp_path: Path, key: ssh.Key) -> AsyncIterator[FakeRunner]:
    buildkit = tmp_path / "buildkitd.sock"
    async with echo(buildkit), fake_runner(ssh.public_line(key), buildkit) as there:
        yield there


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test ends without a temporary directory of a build."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    yield
    assert list(scratch.iterdir()) == []


def request(tmp_path: Path, behave: str, *words: str, **more: str) -> flow.Request:
    program = tmp_path / "buildx"
    program.write_text(textwrap.dedent(BUILDX).lstrip())
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environ = {
        "PATH": os.environ["PATH"],
        "BEHAVE": behave,
        "NOTES": str(tmp_path / "notes"),
        "HOME": "/nowhere",
        **more,
    }
    parsed = args.parse([*words] if "-" in words[-1:] else [*words, "."], HOST)
    return flow.Request(parsed, "o/r", "main", "manual", HOST, program, environ, caches=HOST)


async def build(asked: flow.Request, farm: FakeFarm, lines: list[str] | None = None) -> Result:
    config = Config.model_validate({"lease": {"heartbeat_s": 0.5}})
    shown: list[str] = [] if lines is None else lines
    async with asyncio.timeout(30):
        return await flow.build(asked, farm, config, shown.append)


async def test_a_build_that_succeeds(tmp_path: Path, runner: FakeRunner) -> None:
    file = tmp_path / "m.json"
    words = ("-t", "images/o/r:1", "--push", "--metadata-file", str(file))
    farm = FakeFarm(runner)
    result = await build(request(tmp_path, "", *words), farm)
    assert (result.outcome, result.exit_status) == (Outcome.SUCCEEDED, 0)
    (report,) = farm.reports
    assert report["outcome"] is Outcome.SUCCEEDED
    assert report["digest"] == DIGEST
    assert report["images"] == (f"{HOST}/images/o/r:1",)
    assert farm.deleted == []
    assert farm.log == b"#1 [1/1] RUN x\n#1 CACHED\n"
    merged = json.loads(file.read_text())
    assert merged["theirs"] == 1, "buildx's own keys stay"
    assert merged["mayfly"]["build"] == LEASE
    assert merged["mayfly"]["size"] == "t1"
    assert merged["mayfly"]["attempts"] == [{"size": "t1", "outcome": "succeeded"}]
    assert {"queue", "ready", "build", "push"} <= merged["mayfly"]["timings_s"].keys()


async def test_proxies_of_the_steps_go_by_a_file(
    tmp_path: Path, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, "", "--build-arg", "https_proxy")
    assert asked.proxies == {}
    environ = {**asked.environ, "https_proxy": "http://u:hush@proxy:3128"}
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    config = Config(state=tmp_path)
    monkeypatch.setattr(flow, "buildx_of", lambda config: asked.buildx)
    words = ["--build-arg", "https_proxy", "--mayfly-repo", "o/r", str(tmp_path)]
    made = flow.prepare(words, config, environ, tmp_path)
    assert made.proxies == {"https_proxy": "http://u:hush@proxy:3128"}
    made = replace(asked, proxies=made.proxies)
    assert (await build(made, FakeFarm(runner))).outcome is Outcome.SUCCEEDED
    notes = Path(asked.environ["NOTES"])
    told = json.loads(notes.with_name(f"{notes.name}.logins").read_text())
    assert told["proxies"] == {"default": {"httpsProxy": "http://u:hush@proxy:3128"}}
    assert "proxy" not in notes.read_text()


@pytest.mark.parametrize("words", [["--progress=plain"], ["--progress=quiet"]])
async def test_what_is_secret_is_neither_shown_nor_kept_however_it_is_cut(
    tmp_path: Path, runner: FakeRunner, words: list[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    farm = FakeFarm(runner)
    asked = replace(request(tmp_path, "tell", *words), secrets=("hush-hush", "PASS"))
    assert (await build(asked, farm)).outcome is Outcome.SUCCEEDED
    line = b"#1 0.1 it is ********, and #1 ********\n"
    assert line in capfdbinary.readouterr().err
    if words == ["--progress=plain"]:
        assert farm.log == b"#1 [1/1] RUN x\n" + line + b"#1 CACHED\n"
    assert b"hus" not in farm.log


async def test_a_definition_is_built_from_its_plan_with_a_cache_for_each_target(
    tmp_path: Path, runner: FakeRunner
) -> None:
    entries = {
        "web": {"tags": ["images/o/r/web"], "output": [{"type": "image", "push": "true"}]},
        "tool": {},
    }
    asked = request(tmp_path, "")
    words = ["--push", "--mayfly-size", "t2"]
    asked = replace(asked, args=bake.parse(words, HOST, lambda _: {"target": entries}))
    farm = FakeFarm(runner)
    result = await build(asked, farm)
    assert result.outcome is Outcome.SUCCEEDED
    assert farm.request is not None
    assert (farm.request.target, farm.request.size) == ("web,tool", "t2")
    assert farm.reports[0]["images"] == (f"{HOST}/images/o/r/web",)
    plan = json.loads((tmp_path / "notes.plan").read_text())["target"]
    assert plan["web"]["tags"] == [f"{HOST}/images/o/r/web"]
    caches = {name: entry["cache-to"][0]["ref"] for name, entry in plan.items()}
    assert caches == {name: f"{HOST}/cache/trusted/o/r/{name}" for name in ("web", "tool")}


async def test_what_is_asked_for_and_what_the_runner_may_ask_back(
    tmp_path: Path, runner: FakeRunner, key: ssh.Key
) -> None:
    farm = FakeFarm(runner)
    await build(request(tmp_path, "", "--mayfly-size", "t2", "--target", "web"), farm)
    assert farm.request is not None
    assert (farm.request.repo, farm.request.size, farm.request.target) == ("o/r", "t2", "web")
    assert farm.request.ssh_public_key == ssh.public_line(key)
    assert farm.tokens == ["lease-token"]
    logins = json.loads((tmp_path / "notes.logins").read_text())
    assert logins == {"auths": {HOST: {"registrytoken": TOKEN}}}


async def test_what_the_repo_declares_goes_with_the_request_and_names_the_cache(
    tmp_path: Path, runner: FakeRunner
) -> None:
    spec = BuildSpec(cpu=2, cache_keys=("rust-1.85",))
    farm = FakeFarm(runner)
    await build(replace(request(tmp_path, ""), spec=spec, languages=("go", "rust")), farm)
    assert farm.request is not None
    assert (farm.request.spec, farm.request.languages) == (spec, ("go", "rust"))
    words = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()][-1]
    assert any(f"ref={CACHE}__rust-1.85," in word for word in words)


async def test_the_leases_terms_choose_the_caches_and_what_is_pushed_is_said_beforehand(
    tmp_path: Path, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def there(door: cache.Door, where: str) -> bool:
        return True

    monkeypatch.setattr(cache, "exists", there)
    farm = FakeFarm(runner, terms=UNTRUSTED)
    image = f"{HOST}/images/pr/o/r/7:1"
    await build(request(tmp_path, "", "--push", "-t", image, "-t", "quay.io/x/y"), farm)
    assert farm.request is not None
    assert farm.request.pushes == ("images/pr/o/r/7",)
    words = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()][-1]
    own, trusted = f"{HOST}/cache/untrusted/o/r/7__default", f"{HOST}/cache/trusted/o/r/default"
    read = [words[n + 1] for n, word in enumerate(words) if word == "--cache-from"]
    assert read == [f"type=registry,ref={own}", f"type=registry,ref={trusted}"]
    (kept,) = (words[n + 1] for n, word in enumerate(words) if word == "--cache-to")
    assert f"ref={own}," in kept


async def test_a_failing_build_is_reported_and_nothing_is_said_after_buildkit(
    tmp_path: Path, runner: FakeRunner, capfd: pytest.CaptureFixture[str]
) -> None:
    farm, lines = FakeFarm(runner), list[str]()
    result = await build(request(tmp_path, "fail"), farm, lines)
    assert (result.outcome, result.exit_status) == (Outcome.FAILED, 1)
    assert result.last.error is None
    assert farm.reports[0]["outcome"] is Outcome.FAILED
    assert farm.log.endswith(b"ERROR: that is what BuildKit says\n")
    assert capfd.readouterr().err.endswith("ERROR: that is what BuildKit says\n")


async def test_with_somebody_elses_registry_image_and_cache_go_there_by_its_tokens_alone(
    tmp_path: Path, runner: FakeRunner
) -> None:
    async with third_party(tmp_path) as (third, ca):
        (tmp_path / "word").write_text("hush\n")
        config = Config.model_validate(
            {
                "registry": {
                    "kind": "external",
                    "images": f"{third.address}/acme",
                    "ca": str(ca),
                    "username": "me",
                    "password_file": str(tmp_path / "word"),
                }
            }
        )
        parsed = args.parse(["-t", "images/o/r:1", "--push", "."], config.images)
        asked = replace(
            request(tmp_path, ""), args=parsed, registry=config.registry, caches=config.caches
        )
        farm, lines = FakeFarm(runner), list[str]()
        assert (await build(asked, farm, lines)).outcome is Outcome.SUCCEEDED
    assert farm.reports[0]["images"] == (f"{third.address}/acme/o/r:1",)
    token = "for repository:acme/mayfly-cache:pull,push repository:acme/o/r:pull,push"
    logins = json.loads((tmp_path / "notes.logins").read_text())
    assert logins == {"auths": {third.address: {"registrytoken": token}}}
    words = json.loads((tmp_path / "notes").read_text().splitlines()[1])
    exported = words[words.index("--cache-to") + 1]
    assert f"ref={third.address}/acme/mayfly-cache:trusted-o-r-default-" in exported
    assert "--cache-from" not in words, "it was asked, and there is none"


async def test_an_image_that_could_not_be_pushed(tmp_path: Path, runner: FakeRunner) -> None:
    result = await build(request(tmp_path, "unpushed"), FakeFarm(runner))
    assert (result.outcome, result.exit_status) == (Outcome.NOT_PUBLISHED, 9)


async def _building(farm: FakeFarm, runs: int = 1) -> None:
    """Until buildx has run so often that its log came in as often."""
    async with asyncio.timeout(20):
        while farm.log.count(b"#1 [1/1]") < runs:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _runs(tmp_path: Path) -> int:
    return (tmp_path / "notes").read_text().count('["build"')


@pytest.mark.parametrize("behave", ["lose-once", "hang-once"])
async def test_a_lost_connection_is_opened_again_and_the_build_goes_on(
    tmp_path: Path, runner: FakeRunner, behave: str
) -> None:
    farm, lines, file = FakeFarm(runner), list[str](), tmp_path / "m.json"
    asked = request(tmp_path, behave, "--metadata-file", str(file))
    building = asyncio.create_task(build(asked, farm, lines))
    await _building(farm)
    runner.absent = 2
    await runner.cut()
    result = await building
    assert (result.outcome, result.exit_status) == (Outcome.SUCCEEDED, 0)
    assert lines[2:] == [
        "the connection to the runner's BuildKit was lost: connecting again to the same VM, "
        "where finished steps are CACHED"
    ]
    assert [report["outcome"] for report in farm.reports] == [Outcome.SUCCEEDED]
    assert _runs(tmp_path) == 2
    first, _, second = farm.log.partition(lines[2].encode() + b"\n")
    assert (first.count(b"#1 [1/1]"), second.count(b"#1 [1/1]")) == (1, 1), "one log over both"
    told = json.loads(file.read_text())["mayfly"]
    assert (told["reconnects"], told["attempts"]) == (1, [{"size": "t1", "outcome": "succeeded"}])
    assert told["timings_s"]["reconnect"] > 0
    hanging = tmp_path / "notes.hanging"
    assert not hanging.exists() or not Path(f"/proc/{hanging.read_text().strip()}").exists()


async def test_a_connection_that_is_lost_too_often_is_infrastructure_and_not_the_users_fault(
    tmp_path: Path, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnect, "LOSSES", 1)
    farm = FakeFarm(runner)
    building = asyncio.create_task(build(request(tmp_path, "lose"), farm))
    for runs in (1, 2):
        await _building(farm, runs)
        await runner.cut()
    result = await building
    assert (result.outcome, result.exit_status) == (Outcome.INFRASTRUCTURE, 20)
    assert farm.reports[0]["outcome"] is Outcome.INFRASTRUCTURE
    assert result.last.reconnects == 1


async def test_a_runner_that_cannot_be_reached_is_given_up_in_the_end(
    tmp_path: Path, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.absent = 1000
    lines = list[str]()

    async def lose_patience() -> None:
        while runner.absent > 997:  # noqa: ASYNC110 - it has been tried more than once
            await asyncio.sleep(0.01)
        monkeypatch.setattr(reconnect, "PATIENCE_S", 0.0)

    waiting = asyncio.create_task(lose_patience())
    result = await build(request(tmp_path, ""), FakeFarm(runner), lines)
    await waiting
    assert (result.outcome, result.exit_status) == (Outcome.INFRASTRUCTURE, 20)
    assert "no way to the runner" in str(result.error)
    assert len(lines[2:]) == 1, "one line, however often it was tried"


@pytest.mark.parametrize(
    ("ended", "error"),
    [
        (("runner_lost", "the runner died"), InfrastructureError),
        (("budget_exceeded", "an hour is over"), BudgetExceeded),
    ],
)
async def test_a_lease_that_ended_is_why_the_connection_broke(
    tmp_path: Path, runner: FakeRunner, ended: tuple[str, str], error: type[Exception]
) -> None:
    farm = FakeFarm(runner)
    config = Config.model_validate({"lease": {"heartbeat_s": 60, "grace_s": 120}})
    building = asyncio.create_task(
        flow.build(request(tmp_path, "lose"), farm, config, lambda line: None)
    )
    await _building(farm)
    farm.ended = ended
    await runner.cut()
    async with asyncio.timeout(30):
        with pytest.raises(error, match=f"ended as {ended[0]}: {ended[1]}"):
            await building
    assert _runs(tmp_path) == 1


async def test_standard_input_is_there_for_the_second_run_too(
    tmp_path: Path, runner: FakeRunner
) -> None:
    read, write = os.pipe()
    ours = os.dup(0)
    os.dup2(read, 0)
    os.close(read)
    try:
        farm = FakeFarm(runner)
        building = asyncio.create_task(build(request(tmp_path, "lose-once", "-"), farm))
        await asyncio.sleep(0.3)
        os.write(write, b"FROM scratch")
        os.close(write)
        await _building(farm)
        await runner.cut()
        assert (await building).outcome is Outcome.SUCCEEDED
    finally:
        os.dup2(ours, 0)
        os.close(ours)
    assert (tmp_path / "notes.stdin").read_text() == "FROM scratch;" * 2


async def test_a_result_for_standard_output_is_never_written_twice(
    tmp_path: Path, runner: FakeRunner
) -> None:
    farm = FakeFarm(runner)
    building = asyncio.create_task(build(request(tmp_path, "lose", "-o", "type=tar"), farm))
    await _building(farm)
    await runner.cut()
    result = await building
    assert (result.outcome, _runs(tmp_path)) == (Outcome.INFRASTRUCTURE, 1)
    assert "a part of the result may have been written" in str(result.error)


async def test_a_registry_that_does_not_serve_is_not_the_users_fault(
    tmp_path: Path, runner: FakeRunner
) -> None:
    result = await build(request(tmp_path, "unread"), FakeFarm(runner))
    assert result.outcome is Outcome.FAILED, "the registry says that there is no such image"
    runner.registry = 503
    result = await build(request(tmp_path, "unread"), FakeFarm(runner))
    assert (result.outcome, result.exit_status) == (Outcome.INFRASTRUCTURE, 20)
    assert "images/base/x:1 cannot be read" in str(result.error)


async def test_the_verdict_decides_on_another_attempt(tmp_path: Path, runner: FakeRunner) -> None:
    farm, lines = FakeFarm(runner, verdicts=["retry", "done"]), list[str]()
    result = await build(request(tmp_path, "fail"), farm, lines)
    assert [a.outcome for a in result.attempts] == [Outcome.OOM, Outcome.FAILED]
    assert [a.size for a in result.attempts] == ["t1", "t2"]
    assert [report["attempt"] for report in farm.reports] == [1, 2]
    assert "going on" in lines
    assert farm.log.count(b"#1 [1/1]") == 2, "one log over all attempts"
    assert b"attempt 1 ended as oom" in farm.log


async def test_a_runner_that_is_taken_away_for_another_is_no_lost_connection(
    tmp_path: Path, runner: FakeRunner
) -> None:
    farm, lines = FakeFarm(runner), list[str]()
    building = asyncio.create_task(build(request(tmp_path, "lose-once"), farm, lines))
    await _building(farm)
    farm.attempt = 2
    await runner.cut()
    result = await building
    assert [a.outcome for a in result.attempts] == [Outcome.OOM, Outcome.SUCCEEDED]
    assert [report["attempt"] for report in farm.reports] == [1, 2]
    assert lines[1:] == ["template: booting", "going on"]


@pytest.mark.parametrize(
    ("outcome", "status"), [("budget_exceeded", 7), ("runner_lost", 20), ("client_lost", 20)]
)
async def test_the_orchestrators_outcome_counts(
    tmp_path: Path, runner: FakeRunner, outcome: str, status: int
) -> None:
    farm = FakeFarm(runner, overruled=outcome)
    result = await build(request(tmp_path, "fail"), farm)
    assert (result.outcome, result.exit_status) == (outcome, status)
    assert result.error is not None
    assert result.error.exit_status == status
    assert f"ended as {outcome}" in str(result.error)


async def test_a_wrong_host_key_is_denied(tmp_path: Path, runner: FakeRunner) -> None:
    runner.host_key = OTHER_KEY
    result = await build(request(tmp_path, ""), FakeFarm(runner))
    assert (result.outcome, result.exit_status) == (Outcome.DENIED, 10)
    assert "another host key" in str(result.last.error)
    assert '"build"' not in (tmp_path / "notes").read_text(), "buildx was not started"


async def test_an_orchestrator_that_restarts_does_not_disturb_a_build(
    tmp_path: Path, runner: FakeRunner
) -> None:
    result = await build(request(tmp_path, ""), FakeFarm(runner, away=3))
    assert result.outcome is Outcome.SUCCEEDED


async def test_waiting_says_what_goes_on(tmp_path: Path) -> None:
    farm, lines = FakeFarm(None), list[str]()
    building = asyncio.create_task(build(request(tmp_path, ""), farm, lines))
    async with asyncio.timeout(30):
        while "template: booting" not in lines:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    farm.ended = ("queue_timeout", "no room for 900 s")
    with pytest.raises(QueueTimeout, match="no room for 900 s"):
        await building
    page = f"https://farm/builds/{LEASE}#token=t"
    assert lines == [f"build {LEASE} of o/r: {page}", "template: booting"]


async def test_a_refused_request_is_raised_as_it_is(tmp_path: Path) -> None:
    farm = FakeFarm(None, refuse=Denied("not yours"))
    with pytest.raises(Denied, match="not yours"):
        await build(request(tmp_path, ""), farm)
    assert not farm.reports
    assert not farm.deleted


async def _hanging(tmp_path: Path) -> None:
    async with asyncio.timeout(30):
        while not (tmp_path / "notes.hanging").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "error", "outcome"),
    [
        (signal.SIGINT, Cancelled, Outcome.CANCELLED),
        (signal.SIGTERM, Terminated, Outcome.TERMINATED),
        (signal.SIGHUP, Terminated, Outcome.TERMINATED),
    ],
)
async def test_a_signal_ends_the_lease_at_once(
    tmp_path: Path,
    runner: FakeRunner,
    number: signal.Signals,
    error: type[Exception],
    outcome: Outcome,
) -> None:
    farm = FakeFarm(runner)
    building = asyncio.create_task(build(request(tmp_path, "hang"), farm))
    await _hanging(tmp_path)
    started_at = asyncio.get_running_loop().time()
    os.kill(os.getpid(), number)
    with pytest.raises(error):
        await building
    assert asyncio.get_running_loop().time() - started_at < 8
    assert farm.deleted == [outcome]
    assert farm.reports == []


async def test_a_signal_while_asking_gives_back_what_was_granted_meanwhile(
    tmp_path: Path, runner: FakeRunner
) -> None:
    farm = FakeFarm(runner, ask_s=1.0)
    building = asyncio.create_task(build(request(tmp_path, ""), farm))
    await asyncio.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Cancelled):
        await building
    assert farm.deleted == [Outcome.CANCELLED]


async def test_a_lease_ended_by_somebody_else_ends_the_build(
    tmp_path: Path, runner: FakeRunner
) -> None:
    farm = FakeFarm(runner)
    building = asyncio.create_task(build(request(tmp_path, "hang"), farm))
    await _hanging(tmp_path)
    farm.ended = ("cancelled", "ended by admin")
    with pytest.raises(Cancelled, match="ended by admin"):
        await building
    farm.ended = ("runner_lost", "QEMU is gone")


async def test_a_lost_runner_is_worth_another_try(tmp_path: Path) -> None:
    farm = FakeFarm(None, ended=("runner_lost", "QEMU is gone"))
    with pytest.raises(InfrastructureError, match="QEMU is gone"):
        await build(request(tmp_path, ""), farm)


async def test_heartbeats_go_on_while_buildx_runs(tmp_path: Path, runner: FakeRunner) -> None:
    farm = FakeFarm(runner)
    building = asyncio.create_task(build(request(tmp_path, "hang"), farm))
    await _hanging(tmp_path)
    before = farm.beats
    async with asyncio.timeout(30):
        while farm.beats < before + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert farm.reports[0]["outcome"] is Outcome.INTERNAL


async def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "PATIENCE_S", 0.6)

    async def away() -> None:
        raise InfrastructureError("away")

    async with asyncio.timeout(5):
        with pytest.raises(InfrastructureError):
            await holding.patiently(away)


MODES = pytest.mark.parametrize("mode", ["plain", "quiet", "rawjson", "tty"])


def built(tmp_path: Path) -> int:
    """How often buildx was asked for a build."""
    told = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    return [words[0] for words in told].count("build")


@pytest.fixture
def a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--progress=tty` draws, and whatever ends is late enough for a build that never began."""
    shown = {"plain": "plain", "tty": "drawn"}
    monkeypatch.setattr(
        progress, "display", lambda asked, environ, terminal: shown.get(asked, "other")
    )
    monkeypatch.setattr(results, "BEGIN_S", 0.0)
    monkeypatch.setattr(flow, "PAUSE_S", 0.1)


@MODES
@pytest.mark.usefixtures("a_terminal")
async def test_what_fails_by_the_users_fault_is_never_taken_for_what_never_began(
    tmp_path: Path, runner: FakeRunner, mode: str
) -> None:
    farm = FakeFarm(runner)
    result = await build(request(tmp_path, "fail", f"--progress={mode}"), farm)
    assert (result.outcome, result.exit_status) == (Outcome.FAILED, 1)
    assert [report["outcome"] for report in farm.reports] == [Outcome.FAILED]
    assert built(tmp_path) == 1


@MODES
@pytest.mark.usefixtures("a_terminal")
async def test_what_never_began_is_tried_again_and_is_the_farms_fault_in_the_end(
    tmp_path: Path, runner: FakeRunner, mode: str
) -> None:
    farm = FakeFarm(runner)
    result = await build(request(tmp_path, "stall", f"--progress={mode}"), farm)
    assert [report["outcome"] for report in farm.reports] == [Outcome.INFRASTRUCTURE]
    assert result.exit_status == InfrastructureError.exit_status
    assert built(tmp_path) == 1 + reconnect.STALLS


@pytest.mark.usefixtures("a_terminal")
async def test_what_does_not_begin_once_is_built(tmp_path: Path, runner: FakeRunner) -> None:
    farm = FakeFarm(runner)
    result = await build(request(tmp_path, "stall-once", "--progress=plain"), farm)
    assert [report["outcome"] for report in farm.reports] == [Outcome.SUCCEEDED]
    assert (result.last.reconnects, built(tmp_path)) == (1, 2)


@pytest.mark.usefixtures("a_terminal")
@pytest.mark.parametrize("mode", ["quiet", "rawjson", "tty"])
async def test_of_a_check_no_record_is_missed(
    tmp_path: Path, runner: FakeRunner, mode: str
) -> None:
    """It builds nothing, and BuildKit keeps none; what it has found is no fault of the farm's."""
    farm = FakeFarm(runner)
    await build(request(tmp_path, "stall", "--check", f"--progress={mode}"), farm)
    assert [report["outcome"] for report in farm.reports] == [Outcome.FAILED]
    assert built(tmp_path) == 1
