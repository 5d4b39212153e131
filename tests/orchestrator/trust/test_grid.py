"""The trust grid, on a live farm: who asks x what the runner may then do.

Every request goes to the farm's one public address. What a runner may do is asked of the registry
itself, with the token that the lease's runner has.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mayfly.client import tls_context
from mayfly.registry import grants
from mayfly.registry.caches import caches
from tests.orchestrator.trust.forge import PULL, PUSH, REPO, SECRETS, Woodpecker
from tests.orchestrator.trust.live import Live, bearer, living
from tests.stack_fixture import oci_image

pytestmark = pytest.mark.services

REPO_NAME = "team/app"
OTHER = {**REPO, "id": 6, "full_name": "Team/Other"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with living() as farm:
        folder = tmp_path_factory.mktemp("image")
        oci_image(folder, 1000)
        for name in (f"cache/trusted/{REPO_NAME}/default:latest", f"images/{REPO_NAME}:1"):
            done = push(farm, farm_token(farm), folder, name)
            assert done.returncode == 0, done.stderr
        yield farm


def farm_token(live: Live) -> str:
    now = datetime.now(UTC)
    return live.signer.registry_token("admin", grants.EVERYTHING, now=now)


def push(live: Live, token: str, image: Path, name: str) -> subprocess.CompletedProcess[str]:
    certificates = str(live.config.state / "trust")
    return subprocess.run(
        ["skopeo", "copy", "--dest-cert-dir", certificates, "--dest-registry-token", token,
         f"oci:{image}:t", f"docker://{live.config.registry_host}/{name}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


class Refused(Exception):
    """No ticket, or no lease: whoever asked so has no runner and can do nothing."""


@dataclass
class Sources:
    """Who asks. Each returns the runner's token, or raises `Refused`."""

    live: Live
    number: int = 1000

    def pipeline(self, told: Mapping[str, Any], **more: Any) -> str:
        """By the secret extension, with a ticket for a new pipeline."""
        return self.lease(self.ticket(told, **more))

    def ticket(self, told: Mapping[str, Any], *, number: int = 0, **more: Any) -> str:
        self.number += 1
        answer = self.live.send({**told, "number": number or self.number}, **more)
        if answer.status_code != 200:
            raise Refused(answer.text)
        return str(answer.json()["secrets"][0]["value"])

    def lease(self, token: str, **claims: Any) -> str:
        answer = self.live.ask(token, **claims)
        if answer.status_code != 201:
            raise Refused(answer.text)
        return self.live.runner(answer.json())

    def push(self) -> str:
        return self.pipeline(PUSH)

    def push_to_another_branch(self) -> str:
        return self.pipeline({**PUSH, "branch": "feature", "ref": "refs/heads/feature"})

    def tag_on_the_default_branch(self) -> str:
        self.ticket(PUSH)
        return self.pipeline({**PUSH, "event": "tag", "ref": "refs/tags/v1", "branch": "x"})

    def tag_elsewhere(self) -> str:
        elsewhere = {"event": "tag", "ref": "refs/tags/v2", "commit": "e" * 40}
        return self.pipeline({**PUSH, **elsewhere})

    def pull_request(self) -> str:
        return self.pipeline(PULL)

    def fork(self) -> str:
        return self.pipeline({**PULL, "ref": "refs/pull/8/head", "from_fork": True})

    def cron(self) -> str:
        return self.pipeline({**PUSH, "event": "cron"})

    def cron_of_another_branch(self) -> str:
        return self.pipeline({**PUSH, "event": "cron", "branch": "old", "ref": "refs/heads/old"})

    def manual(self) -> str:
        return self.pipeline({**PUSH, "event": "manual"})

    def manual_of_another_branch(self) -> str:
        return self.pipeline({**PUSH, "event": "manual", "branch": "mine"})

    def forged_ci(self) -> str:
        """A pull request's step that says it is a push to main; CI_* is where clients read that."""
        ticket = self.ticket({**PULL, "ref": "refs/pull/9/head"})
        return self.lease(ticket, event="push", ref="refs/heads/main")

    def forged_ci_of_another_repo(self) -> str:
        return self.lease(self.ticket(PUSH, repo=OTHER), repo=REPO_NAME, event="push")

    def replayed_ticket(self) -> str:
        """A ticket that somebody kept until its pipeline had ended."""
        ticket = self.ticket(PUSH, number=77)
        self.lease(ticket)
        self.live.ended.add(77)
        time.sleep(2.1)  # `pipelines.FRESH_S`: for so long the farm believes that it runs
        return self.lease(ticket)

    def replayed_request(self) -> str:
        body = self.live.server.body({**PUSH, "number": 78})
        headers = self.live.server.headers(SECRETS, body, datetime.now(UTC))
        for _ in range(2):
            answer = self.live.http.post(SECRETS, content=body, headers=headers)
        if answer.status_code != 200:
            raise Refused(answer.text)
        return self.lease(answer.json()["secrets"][0]["value"])

    def ticket_of_another_repo(self) -> str:
        return self.lease(self.ticket(PUSH, repo=OTHER))

    def expired(self) -> str:
        now = datetime.now(UTC)
        origin = {"repos": [REPO_NAME], "event": "push", "branch": "main"}
        told = {**origin, "default_branch": "main", "pipeline": [5, 79]}
        name, end = f"woodpecker:{REPO_NAME}#79", now - timedelta(seconds=1)
        return self.lease(self.live.signer.ticket(name, told, expires_at=end, now=now))

    def wrong_signature(self) -> str:
        return self.pipeline(PUSH, server=Woodpecker())

    def clock_ahead(self) -> str:
        return self.pipeline(PUSH, off_s=120)

    def clock_behind(self) -> str:
        return self.pipeline(PUSH, off_s=-120)

    def clock_a_little_off(self) -> str:
        return self.pipeline(PUSH, off_s=-30)

    def static_token(self) -> str:
        return self.lease(self.given("plain", trusted=False))

    def trusted_static_token(self) -> str:
        return self.lease(self.given("release", trusted=True))

    def given(self, name: str, *, trusted: bool) -> str:
        body = {"name": name, "repos": ["team/*"], "trusted": trusted}
        answer = self.live.http.post("/v1/tokens", json=body, headers=bearer(self.live.admin))
        return str(answer.json()["token"])

    def administrator(self) -> str:
        return self.lease(self.live.admin)

    def nobody(self) -> str:
        return self.lease("")


ALL, READS, NONE = (True, True, True), (True, False, False), (False, False, False)

GRID: Mapping[Callable[[Sources], str], tuple[bool, bool, bool]] = {
    # read trusted cache, write trusted cache, push image
    Sources.push: ALL,
    Sources.push_to_another_branch: READS,
    Sources.tag_on_the_default_branch: ALL,
    Sources.tag_elsewhere: READS,
    Sources.pull_request: READS,
    Sources.fork: READS,
    Sources.cron: ALL,
    Sources.cron_of_another_branch: READS,
    Sources.manual: ALL,
    Sources.manual_of_another_branch: READS,
    Sources.forged_ci: READS,
    Sources.forged_ci_of_another_repo: NONE,
    Sources.replayed_ticket: NONE,
    Sources.replayed_request: NONE,
    Sources.ticket_of_another_repo: NONE,
    Sources.expired: NONE,
    Sources.wrong_signature: NONE,
    Sources.clock_ahead: NONE,
    Sources.clock_behind: NONE,
    Sources.clock_a_little_off: ALL,
    Sources.static_token: READS,
    Sources.trusted_static_token: ALL,
    Sources.administrator: ALL,
    Sources.nobody: NONE,
}

MANIFEST = {"Accept": "application/vnd.oci.image.manifest.v1+json"}


def read_trusted_cache(live: Live, token: str) -> int:
    path = f"/v2/cache/trusted/{REPO_NAME}/default/manifests/latest"
    return live.http.get(path, headers={**bearer(token), **MANIFEST}).status_code


def write_trusted_cache(live: Live, token: str) -> int:
    return upload(live, token, f"cache/trusted/{REPO_NAME}/default")


def push_image(live: Live, token: str) -> int:
    return upload(live, token, f"images/{REPO_NAME}")


def upload(live: Live, token: str, name: str) -> int:
    """Begin to push into a repository, which is where the registry decides."""
    return live.http.post(f"/v2/{name}/blobs/uploads/", headers=bearer(token)).status_code


DEEDS: Mapping[Callable[[Live, str], int], int] = {
    read_trusted_cache: 200,
    write_trusted_cache: 202,
    push_image: 202,
}


@dataclass
class Asked:
    """What each source got; it is asked once."""

    sources: Sources
    got: dict[str, str | Refused] = field(default_factory=dict)

    def token(self, source: Callable[[Sources], str]) -> str:
        """The runner's token; empty where there is no runner."""
        name = source.__name__
        if name not in self.got:
            try:
                self.got[name] = source(self.sources)
            except Refused as refused:
                self.got[name] = refused
        found = self.got[name]
        return found if isinstance(found, str) else ""


@pytest.fixture(scope="module")
def asked(live: Live) -> Asked:
    return Asked(Sources(live))


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
@pytest.mark.parametrize("source", GRID, ids=lambda source: source.__name__)
def test_each_cell_is_as_the_policy_says(
    live: Live,
    asked: Asked,
    source: Callable[[Sources], str],
    deed: Callable[[Live, str], int],
) -> None:
    allowed = GRID[source][list(DEEDS).index(deed)]
    token = asked.token(source)
    assert bool(token) is any(GRID[source]), asked.got[source.__name__]
    if token:
        assert deed(live, token) == (DEEDS[deed] if allowed else 403)
    else:
        assert deed(live, "") == 401


def test_what_is_not_trusted_has_a_place_of_its_own(
    live: Live, asked: Asked, tmp_path: Path
) -> None:
    oci_image(tmp_path / "image", 1000)
    token = asked.token(Sources.pull_request)
    for name in (f"images/pr/{REPO_NAME}/7:1", f"cache/untrusted/{REPO_NAME}/7__default:latest"):
        done = push(live, token, tmp_path / "image", name)
        assert done.returncode == 0, done.stderr
    for name in (
        f"images/pr/{REPO_NAME}/8",
        f"images/pr/{REPO_NAME}",
        f"images/pr/{REPO_NAME}/7/more",
        f"cache/untrusted/{REPO_NAME}/8__default",
        f"cache/untrusted/{REPO_NAME}/default",
        "images/team/other",
        "images/base/debian",
        "images/mayfly/buildkit-launcher",
    ):
        assert upload(live, token, name) == 403, name
    fork, trusted = asked.token(Sources.fork), asked.token(Sources.push)
    for other in (fork, trusted):
        for name in (f"images/pr/{REPO_NAME}/7", f"cache/untrusted/{REPO_NAME}/7__default"):
            assert upload(live, other, name) == 403, name
            read = live.http.get(f"/v2/{name}/tags/list", headers=bearer(other))
            assert read.status_code == 403, name


def test_a_blob_is_not_mounted_out_of_what_may_not_be_read(live: Live, asked: Asked) -> None:
    token = asked.token(Sources.fork)
    path = f"/v2/images/pr/{REPO_NAME}/8/blobs/uploads/"
    digest = f"sha256:{'0' * 64}"
    query = {"mount": digest, "from": f"images/pr/{REPO_NAME}/7"}
    answer = live.http.post(path, params=query, headers=bearer(token))
    assert answer.status_code == 202, "an upload begins, and nothing is mounted"


def test_no_secret_is_in_the_logs(live: Live, asked: Asked) -> None:
    for source in GRID:
        asked.token(source)
    logs = b"".join(path.read_bytes() for path in (live.config.state / "log").iterdir())
    assert b"ticket given" in logs
    assert b"eyJ" not in logs, "part of a signed token"
    for secret in (b"mayfly_token_", b"mayfly_admin_", b"hush", live.admin.encode()):
        assert secret not in logs
    told = b"".join(path.read_bytes() for path in live.config.run.glob("*") if path.is_file())
    assert b"hush" not in told


def command(live: Live, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`mayfly WORDS`, as somebody elsewhere runs it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAYFLY_")}
    env = {
        **own,
        "MAYFLY_CONFIG": str(live.config.run / "mayfly.toml"),
        "MAYFLY_URL": live.config.url,
        "MAYFLY_TOKEN": live.admin,
        "MAYFLY_CA": str(live.config.state / "ca" / "ca.crt"),
        **more,
    }
    argv = [sys.executable, "-m", "mayfly.cli.main", *map(str, words)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_client_is_told_what_it_may_not_push_before_there_is_a_lease(
    live: Live, asked: Asked, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    ticket = asked.sources.ticket({**PULL, "ref": "refs/pull/31/head"})
    before = len(live.http.get("/v1/builds", headers=bearer(live.admin)).json())

    def build(repo: str, image: str) -> subprocess.CompletedProcess[str]:
        words = ("build", "--mayfly-repo", repo, "-t", image, "--push", tmp_path)
        claims = {"CI_REPO": repo, "CI_PIPELINE_EVENT": "push", "CI_COMMIT_BRANCH": "main"}
        return command(live, *words, MAYFLY_TOKEN=ticket, **claims)

    for repo, image, said in (
        (
            REPO_NAME,
            f"images/{REPO_NAME}:1",
            f"a build of repo {REPO_NAME} that is not trusted (it builds a pull request) may not "
            f"push to images/{REPO_NAME} - use -t images/pr/{REPO_NAME}/31",
        ),
        (
            REPO_NAME,
            f"images/pr/{REPO_NAME}/32:1",
            f"may not push to images/pr/{REPO_NAME}/32 - use -t images/pr/{REPO_NAME}/31",
        ),
        ("team/other", "images/team/other:1", "may not build team/other - it may build team/app"),
    ):
        done = build(repo, image)
        assert done.returncode == 10, done.stderr
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    after = live.http.get("/v1/builds", headers=bearer(live.admin)).json()
    assert len(after) == before


def test_a_token_lists_its_repos_caches_and_empties_what_its_builds_write(
    live: Live, asked: Asked, tmp_path: Path
) -> None:
    oci_image(tmp_path / "image", 1000)
    repo = "team/caches"
    trusted, own, other = (
        f"cache/trusted/{repo}/default",
        f"cache/untrusted/{repo}/token-laptop__default",
        f"cache/untrusted/{repo}/7__default",
    )
    for name in (trusted, own, other):
        assert push(live, farm_token(live), tmp_path / "image", f"{name}:latest").returncode == 0
    laptop = asked.sources.given("laptop", trusted=False)
    trusting = asked.sources.given("trusting", trusted=True)

    def mayfly(token: str, *words: str) -> subprocess.CompletedProcess[str]:
        return command(live, "cache", *words, MAYFLY_TOKEN=token)

    def listed(token: str) -> list[str]:
        return asyncio.run(names(token))

    async def names(token: str) -> list[str]:
        tls = tls_context(live.config.state / "ca" / "ca.crt")
        async with caches(live.config.url, token, tls) as there:
            return [one.repository for one in await there.all(repo)]

    assert listed(laptop) == [trusted, own]
    assert listed(trusting) == listed(live.admin) == [trusted, other, own]
    for words in (("ls",), ("reset", "--repo", "other/app")):
        refused = mayfly(laptop, *words)
        assert refused.returncode == 10, refused
        assert "name one of its repos (`--repo`)" in refused.stderr
    done = mayfly(laptop, "reset", "--repo", repo)
    assert done.returncode == 0, done.stderr
    assert "emptied 1 layer cache" in done.stderr and f"kept {trusted}" in done.stderr
    assert listed(live.admin) == [trusted, other]
    refused = mayfly(laptop, "reset", "--repo", repo)
    assert refused.returncode == 10 and f"may not empty {trusted}" in refused.stderr
    assert mayfly(trusting, "reset", "--repo", repo, "--json").returncode == 0
    assert listed(live.admin) == []


def test_tokens_are_made_listed_and_revoked_by_the_command(live: Live) -> None:
    def mayfly(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return command(live, "token", *words, **more)

    made = mayfly("create", "cli", "--repo", "team/*", "--repo", "x/y", "--expires", "12h")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert live.ask(token).status_code == 201
    assert live.ask(token, repo="other/app").status_code == 403
    (found,) = [one for one in json.loads(mayfly("ls", "--json").stdout) if one["name"] == "cli"]
    assert found["repos"] == ["team/*", "x/y"]
    assert not found["trusted"]
    assert "cli" in mayfly("ls").stdout
    assert mayfly("ls", MAYFLY_TOKEN=token).returncode == 10
    assert mayfly("create", "cli", "--repo", "team/*").returncode == 2
    for wrong in (("--repo", "Team/App"), ("--repo", "a", "--expires", "soon")):
        done = mayfly("create", "other", *wrong)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert mayfly("revoke", "cli").returncode == 0
    assert live.ask(token).status_code == 401
    assert mayfly("revoke", "cli").returncode == 2
