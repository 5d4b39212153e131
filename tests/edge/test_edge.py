"""The edge as clients see it: a real edge, registry and bucket, real skopeo and curl."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import re
import secrets
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from mayfly.registry import bucket, distribution, grants, zot
from mayfly.stack import lifecycle, supervise
from tests.stack_fixture import Stack, oci_image

OCI = ("-H", "Accept: application/vnd.oci.image.manifest.v1+json")

pytestmark = pytest.mark.services


@pytest.fixture
def repo() -> str:
    """A repo of this test's own."""
    return f"team/r{secrets.token_hex(4)}"


def is_zot(stack: Stack) -> bool:
    return stack.config.registry.kind == "zot"


def push(stack: Stack, token: str, image: Path, name: str, *, check: bool = True) -> str:
    return stack.skopeo(
        "copy", "--dest-cert-dir", stack.cert_dir, "--dest-registry-token", token,
        f"oci:{image}:t", f"docker://{stack.address}/{name}", check=check,
    ).stderr  # fmt: skip


def pull(stack: Stack, token: str, name: str, image: Path, *, check: bool = True) -> str:
    return stack.skopeo(
        "copy", "--src-cert-dir", stack.cert_dir, "--src-registry-token", token,
        f"docker://{stack.address}/{name}", f"oci:{image}:t", check=check,
    ).stderr  # fmt: skip


def test_an_image_goes_up_and_comes_down_and_lies_in_the_bucket(
    stack: Stack, repo: str, tmp_path: Path
) -> None:
    manifest, layer = oci_image(tmp_path / "up", 20_000_000)
    _, token = stack.runner(repo)
    push(stack, token, tmp_path / "up", f"images/{repo}:1")
    pull(stack, token, f"images/{repo}@{manifest}", tmp_path / "down")
    down = tmp_path / "down" / "blobs" / "sha256" / layer.partition(":")[2]
    assert hashlib.sha256(down.read_bytes()).hexdigest() == layer.partition(":")[2]

    client = bucket.client(stack.s3)
    keys: list[str] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=stack.s3.bucket):
        keys += [each["Key"] for each in page.get("Contents", [])]
    hexadecimal = layer.partition(":")[2]
    (key,) = [key for key in keys if key.removesuffix("/data").endswith(hexadecimal)]
    assert key.startswith((zot.ROOT if is_zot(stack) else distribution.ROOT).lstrip("/"))
    body = client.get_object(Bucket=stack.s3.bucket, Key=key)["Body"].read()
    assert hashlib.sha256(body).hexdigest() == layer.partition(":")[2]


def test_another_repo_is_denied_and_told_why(stack: Stack, repo: str, tmp_path: Path) -> None:
    oci_image(tmp_path / "up")
    _, token = stack.runner(repo)
    for name in (f"images/{repo}x", "images/base/debian", "images/mayfly/tools", f"{repo}"):
        said = push(stack, token, tmp_path / "up", f"{name}:1", check=False)
        assert re.search(r"403 \(Forbidden\)|StatusCode: 403|denied", said), (name, said)
    answer = stack.curl(f"/v2/images/{repo}x/tags/list", token=token)
    assert answer.status == 403
    (error,) = json.loads(answer.body)["errors"]
    assert error["code"] == "DENIED"
    assert f"may not pull images/{repo}x" in error["message"]


def test_docker_login_with_the_admin_token(stack: Stack, repo: str, tmp_path: Path) -> None:
    oci_image(tmp_path / "up")
    auth = str(tmp_path / "auth.json")
    login = ("login", "--authfile", auth, "--cert-dir", stack.cert_dir, "-u", "me", "-p")
    assert "invalid" in stack.skopeo(*login, "wrong", stack.address, check=False).stderr
    stack.skopeo(*login, stack.admin_token, stack.address)
    target = f"docker://{stack.address}/images/{repo}:1"
    stack.skopeo("copy", "--authfile", auth, "--dest-cert-dir", stack.cert_dir,
                 f"oci:{tmp_path / 'up'}:t", target)  # fmt: skip
    tags = ("list-tags", "--authfile", auth, "--cert-dir", stack.cert_dir)
    said = stack.skopeo(*tags, f"docker://{stack.address}/images/{repo}").stdout
    assert json.loads(said)["Tags"] == ["1"]
    stack.skopeo("delete", "--authfile", auth, "--tls-verify=true", "--cert-dir", stack.cert_dir,
                 target)  # fmt: skip


def test_who_has_no_token_is_shown_the_way(stack: Stack) -> None:
    answer = stack.curl("/v2/")
    assert answer.status == 401
    realm = f"https://{stack.address}/token"
    assert answer.headers["www-authenticate"] == f'Bearer realm="{realm}",service="mayfly"'
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
    answer = stack.curl("/v2/images/o/r/blobs/uploads/?mount=sha256:x&from=images/a", "-X", "POST")
    assert answer.headers["www-authenticate"] == (
        f'Bearer realm="{realm}",service="mayfly",'
        'scope="repository:images/o/r:pull,push repository:images/a:pull"'
    )


def test_at_a_runners_door_the_way_leads_to_a_token_of_that_runner(stack: Stack, repo: str) -> None:
    runner, _ = stack.runner(repo)
    answer = stack.curl("/v2/", port=stack.host.ports[runner])
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == (
        f'Bearer realm="https://{stack.address}/token",service="mayfly:{runner}"'
    )
    admin = stack.signer.registry_token("admin", grants.EVERYTHING, now=datetime.now(UTC))
    assert stack.curl("/v2/", token=admin, port=stack.host.ports[runner]).status == 401


def test_nothing_of_a_request_gets_into_the_headers_of_a_refusal(stack: Stack) -> None:
    answer = stack.curl("/v2/o/blobs/uploads/?from=a%0d%0aX-Own:1%22", "-X", "POST")
    assert answer.status == 401
    assert answer.headers["www-authenticate"].endswith('scope="repository:o:pull,push"')


def test_a_persons_token_for_something_else_is_told_to_ask_again(stack: Stack) -> None:
    asked = grants.parse_scope("repository:images/a:pull")
    token = stack.signer.registry_token("admin", asked, now=datetime.now(UTC))
    assert stack.curl("/v2/", token=token).status == 200
    answer = stack.curl("/v2/images/b/tags/list", token=token)
    assert answer.status == 401
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


def test_the_catalog_is_the_admins(stack: Stack, repo: str) -> None:
    _, runner = stack.runner(repo)
    admin = stack.signer.registry_token("admin", grants.EVERYTHING, now=datetime.now(UTC))
    assert stack.curl("/v2/_catalog", token=runner).status == 403
    answer = stack.curl("/v2/_catalog", token=admin)
    assert answer.status == 200
    assert "repositories" in json.loads(answer.body)


def test_the_list_of_a_repos_caches_names_nothing_else(
    stack: Stack, repo: str, tmp_path: Path
) -> None:
    oci_image(tmp_path / "up")
    admin = stack.signer.registry_token("admin", grants.EVERYTHING, now=datetime.now(UTC))
    mine = [f"cache/trusted/{repo}/default", f"cache/untrusted/{repo}/7__default"]
    others = [f"cache/untrusted/{repo}/8__default", f"cache/trusted/{repo}/sub/default"]
    for name in (*mine, *others, f"images/{repo}", f"cache/trusted/{repo}x/default"):
        push(stack, admin, tmp_path / "up", f"{name}:latest")

    def listed(slot: str, query: str = "") -> list[str]:
        access = grants.for_caches(repo, slot)
        token = stack.signer.registry_token("token:ci", access, now=datetime.now(UTC))
        answer = stack.curl(f"/v2/_catalog{query}", token=token)
        assert answer.status == 200 and "link" not in answer.headers
        return list(json.loads(answer.body)["repositories"])

    assert sorted(listed("7", "?n=1")) == mine
    assert sorted(listed("")) == sorted([*mine, others[0]])


def test_a_mount_needs_pull_on_its_source(stack: Stack, repo: str, tmp_path: Path) -> None:
    _, layer = oci_image(tmp_path / "up")
    _, base = stack.runner(repo)
    admin = stack.signer.registry_token("admin", grants.EVERYTHING, now=datetime.now(UTC))
    name = f"base/b{secrets.token_hex(4)}"
    push(stack, admin, tmp_path / "up", f"images/{name}:1")
    push(stack, admin, tmp_path / "up", f"images/other/{name}:1")
    path = f"/v2/images/{repo}/blobs/uploads/?mount={layer}&from=images/"
    # Not granted: an ordinary upload is begun instead, and the blob is not there.
    assert stack.curl(f"{path}other/{name}", "-X", "POST", token=base).status == 202
    assert stack.curl(f"/v2/images/{repo}/blobs/{layer}", "-I", token=base).status == 404
    assert stack.curl(f"{path.partition('&')[0]}", "-X", "POST", token=base).status == 202
    answer = stack.curl(f"{path}{name}", "-X", "POST", token=base)
    if is_zot(
        stack
    ):  # which mounts nothing, since without `dedupe` it looks into no other repository
        assert answer.status == 202
        return
    assert answer.status == 201
    assert answer.headers["location"] == f"/v2/images/{repo}/blobs/{layer}"
    assert stack.curl(f"/v2/images/{repo}/blobs/{layer}", "-I", token=base).status == 200


def test_parts_heads_and_conditions_pass_through(stack: Stack, repo: str, tmp_path: Path) -> None:
    manifest, layer = oci_image(tmp_path / "up", 100_000)
    _, token = stack.runner(repo)
    push(stack, token, tmp_path / "up", f"images/{repo}:1")
    path = f"/v2/images/{repo}/blobs/{layer}"
    part = stack.curl(path, "-H", "Range: bytes=1000-1009", token=token)
    assert (part.status, part.headers["content-length"]) == (206, "10")
    assert part.headers["content-range"].startswith("bytes 1000-1009/")
    head = stack.curl(path, "-I", token=token)
    assert (head.status, int(head.headers["content-length"]) > 100_000) == (200, True)
    assert head.headers["docker-content-digest"] == layer
    same = stack.curl(path, "-H", f'If-None-Match: "{layer}"', token=token)
    assert same.status == (200 if is_zot(stack) else 304), "zot knows no conditions"
    tag = stack.curl(f"/v2/images/{repo}/manifests/1", "-I", *OCI, token=token)
    assert tag.headers["docker-content-digest"] == manifest


def test_an_upload_can_be_given_up_and_a_manifest_not_deleted(
    stack: Stack, repo: str, tmp_path: Path
) -> None:
    manifest, _ = oci_image(tmp_path / "up")
    _, token = stack.runner(repo)
    push(stack, token, tmp_path / "up", f"images/{repo}:1")
    begun = stack.curl(f"/v2/images/{repo}/blobs/uploads/", "-X", "POST", token=token)
    location = begun.headers["location"]
    assert location.startswith("/v2/"), "good at every name of the edge"
    assert stack.curl(location, "-X", "DELETE", token=token).status == 204
    path = f"/v2/images/{repo}/manifests/{manifest}"
    assert stack.curl(path, "-X", "DELETE", token=token).status == 403
    assert stack.curl(path, "-I", *OCI, token=token).status == 200


def test_a_runner_has_a_listener_of_its_own_for_its_own_token(stack: Stack, repo: str) -> None:
    runner, token = stack.runner(repo)
    _, other = stack.runner(f"{repo}2")
    admin = stack.signer.registry_token("admin", grants.EVERYTHING, now=datetime.now(UTC))
    port = stack.host.ports[runner]
    assert stack.curl("/v2/", port=port, token=token).status == 200
    assert stack.curl("/v2/", port=port, token=other).status == 401
    assert stack.curl("/v2/", port=port, token=admin).status == 401
    assert stack.curl("/v2/", token=other).status == 200
    for path in ("/healthz", "/v1/leases", "/token", f"/v1/leases/{runner[:-2]}/ssh", "/v2x"):
        assert stack.curl(path, port=port, token=token).status == 404, path


def test_a_detached_runner_is_out_at_once(stack: Stack, repo: str) -> None:
    runner, token = stack.runner(repo)
    assert stack.curl("/v2/", token=token).status == 200
    assert stack.admin("DELETE", f"/runners/{runner}")[0] == 204
    assert stack.curl("/v2/", token=token).status == 401
    with pytest.raises(AssertionError, match="connect to"):
        stack.curl("/v2/", port=stack.host.ports[runner], token=token)
    assert stack.admin("DELETE", f"/runners/{runner}")[0] == 204


def test_a_token_dies_with_its_deadline(stack: Stack, repo: str) -> None:
    _, token = stack.runner(repo, life_s=10)
    assert stack.curl("/v2/", token=token).status == 200
    deadline = time.monotonic() + 60
    while stack.curl("/v2/", token=token).status != 401:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_the_admin_socket_attaches_once_and_says_what_is_not_there(stack: Stack, repo: str) -> None:
    runner, _ = stack.runner(repo)
    port = stack.host.ports[runner]
    assert stack.admin("PUT", f"/runners/{runner}")[0] == 204
    assert stack.host.ports[runner] == port, "asked for a second listener"
    assert runner in json.loads(stack.admin("GET", "/runners")[1])["runners"]
    status, body = stack.admin("PUT", "/runners/none-1")
    assert (status, json.loads(body)["error"]["code"]) == (404, "usage")
    assert stack.admin("GET", "/")[0] == 404


def test_the_registry_may_die_and_the_image_is_still_there(
    stack: Stack, repo: str, tmp_path: Path
) -> None:
    manifest, _ = oci_image(tmp_path / "up")
    _, token = stack.runner(repo)
    push(stack, token, tmp_path / "up", f"images/{repo}:1")
    begun = stack.curl(f"/v2/images/{repo}/blobs/uploads/", "-X", "POST", token=token)
    kill(stack, "registry")
    pull(stack, token, f"images/{repo}@{manifest}", tmp_path / "down")
    # An upload that was begun before goes on after.
    location = begun.headers["location"]
    answer = stack.curl(location, "-X", "PATCH", "--data-binary", "x" * 1000,
                        "-H", "Content-Type: application/octet-stream", token=token)  # fmt: skip
    assert answer.status == 202


@pytest.mark.parametrize(
    ("program", "number"),
    [
        ("s3", signal.SIGKILL),
        ("registry", signal.SIGKILL),
        ("s3", signal.SIGSTOP),
        ("registry", signal.SIGSTOP),
    ],
)
def test_who_reads_or_begins_to_write_waits_for_what_dies_or_hangs(
    stack: Stack,
    repo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    number: signal.Signals,
) -> None:
    monkeypatch.setattr(supervise, "LOOK_S", 0.5)
    monkeypatch.setattr(supervise, "HUNG_S", 5)
    monkeypatch.setattr(supervise, "STEADY_S", 0)  # the pause before it starts again does not grow
    manifest, _ = oci_image(tmp_path / "up")
    _, token = stack.runner(repo)
    push(stack, token, tmp_path / "up", f"images/{repo}:1")
    reading = (f"/v2/images/{repo}/manifests/{manifest}", OCI, 200)
    beginning = (f"/v2/images/{repo}/blobs/uploads/", ("-X", "POST"), 202)
    for path, options, status in (reading, beginning)[: 1 if number is signal.SIGSTOP else 2]:
        stack.lines.clear()
        os.kill(pid(stack, program), number)
        assert stack.curl(path, *options, token=token).status == status
        stack.wait_for(f"{program}: serves again")
    assert any("has not served" in line for line in stack.lines) is (number is signal.SIGSTOP)


def test_a_registry_that_is_away_is_said_to_be(stack: Stack, repo: str) -> None:
    _, token = stack.runner(repo)
    stack.lines.clear()
    os.kill(pid(stack, "registry"), signal.SIGSTOP)
    os.kill(pid(stack, "registry"), signal.SIGKILL)
    answers = []
    while not any("serves again" in line for line in stack.lines):
        answers.append(stack.curl("/v2/", token=token))
    bad = [answer for answer in answers if answer.status != 200]
    assert all(answer.status == 503 for answer in bad)
    assert all(json.loads(a.body)["errors"][0]["code"] == "UNAVAILABLE" for a in bad)


def test_an_edge_that_dies_comes_back_with_all_its_runners(stack: Stack, repo: str) -> None:
    runner, token = stack.runner(repo)
    kill(stack, "edge")
    deadline = time.monotonic() + 60
    while runner not in stack.admin("GET", "/runners")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert stack.curl("/v2/", token=token).status == 200
    assert stack.curl("/v2/", port=stack.host.ports[runner], token=token).status == 200


def test_everything_else_goes_to_the_orchestrator_as_it_came(stack: Stack) -> None:
    seen: list[tuple[str, str, dict[str, str], bytes]] = []

    async def route(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen.append((request.method, request.raw_path, dict(request.headers), body))
        return web.json_response({"ok": True}, status=201, headers={"X-Mine": "1"})

    stack.routes["/v1/a b"] = route
    answer = stack.curl("/v1/a%20b?q=%2F&r", "-X", "PUT", "--data-binary", "body",
                        "-H", "X-Forwarded-For: 6.6.6.6", "-H", "Forwarded: for=6.6.6.6",
                        token="t")  # fmt: skip
    assert (answer.status, answer.headers["x-mine"], answer.body) == (201, "1", '{"ok": true}')
    ((method, path, headers, body),) = seen
    assert (method, path, body) == ("PUT", "/v1/a%20b?q=%2F&r", b"body")
    assert headers["Authorization"] == "Bearer t"
    assert headers["X-Forwarded-For"] == "127.0.0.1"
    assert headers["Host"] == stack.address
    assert headers["Content-Length"] == "4"
    assert "Forwarded" not in headers


def test_events_arrive_when_they_are_sent(stack: Stack) -> None:
    sent = threading.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"data: first\n\n")
        await asyncio.to_thread(sent.wait, 10)
        await answer.write(b"data: second\n\n")
        return answer

    stack.routes["/events"] = events

    async def read() -> bytes:
        reader, writer = await asyncio.open_connection(
            "localhost", stack.config.server.port, ssl=stack.tls
        )
        writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        first = await asyncio.wait_for(reader.readuntil(b"first"), 10)
        sent.set()
        rest = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return first + rest

    assert b"second" in asyncio.run(read())


def test_a_compressed_answer_stays_compressed(stack: Stack) -> None:
    async def route(request: web.Request) -> web.StreamResponse:
        body = gzip.compress(b"hello")
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    stack.routes["/zipped"] = route
    assert stack.curl("/zipped", "--compressed").body == "hello"


def test_half_an_answer_does_not_look_like_a_whole_one(stack: Stack) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        await answer.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return answer

    stack.routes["/broken"] = broken
    with pytest.raises(AssertionError, match="curl"):
        stack.curl("/broken")


@pytest.mark.parametrize("target", ["http://evil/v2/", "@evil/", "*"])
def test_a_target_that_is_no_path_is_refused(stack: Stack, target: str) -> None:
    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection(
            "localhost", stack.config.server.port, ssl=stack.tls
        )
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    assert asyncio.run(ask()).split(b" ")[1] in (b"400", b"404")


def test_an_orchestrator_that_is_away_is_said_to_be(stack: Stack) -> None:
    path = stack.config.run / "api" / "orchestrator.sock"
    hidden = path.with_name("hidden")
    path.rename(hidden)
    try:
        answer = stack.curl("/healthz")
    finally:
        hidden.rename(path)
    assert answer.status == 503
    assert json.loads(answer.body)["error"]["code"] == "infrastructure"


def test_plain_http_and_old_tls_are_refused(stack: Stack) -> None:
    with pytest.raises(AssertionError):
        stack.curl("/v2/", "--tls-max", "1.1")


def pid(stack: Stack, name: str) -> int:
    status = lifecycle.running(stack.config)
    assert status is not None
    return next(service.pid for service in status.services if service.name == name)


def kill(stack: Stack, name: str) -> None:
    """Kill a program, and wait until the supervisor has it serving again."""
    stack.lines.clear()
    os.kill(pid(stack, name), signal.SIGKILL)
    stack.wait_for(f"{name}: serves again")


def test_a_token_of_the_future_is_no_use_when_its_lease_was_never_attached(stack: Stack) -> None:
    now = datetime.now(UTC)
    token = stack.signer.runner_token(
        "ghost", 1, grants.for_lease("o/r"), deadline=now + timedelta(hours=1), now=now
    )
    assert stack.curl("/v2/", token=token).status == 401


def test_a_request_waits_for_a_program_that_is_being_restarted(stack: Stack) -> None:
    path = stack.config.run / "api" / "orchestrator.sock"
    hidden = path.with_name("hidden")
    path.rename(hidden)
    back = threading.Timer(1, lambda: hidden.rename(path))
    began = time.monotonic()
    back.start()
    assert stack.curl("/healthz").status == 200
    assert time.monotonic() - began >= 1
    back.join()
