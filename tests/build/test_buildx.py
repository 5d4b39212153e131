"""What buildx is called with, and which credentials a runner can ask for."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mayfly.build import args, buildx, cache
from mayfly.registry import grants
from mayfly.wire import TermsJson

HOST = "registry.mayfly.internal:5000"


CACHE = f"{HOST}/cache/trusted/o/r/default"


def _argv(*words: str, warm: bool = True) -> list[str]:
    parsed = args.parse(words, HOST, docker=True)
    there = buildx.Folder(Path("/tmp/x"))
    caches = {"": cache.Cache(CACHE, warm)}
    return list(buildx.build_argv(Path("/bin/buildx"), parsed, there, caches))


def test_ours_come_first_and_the_users_follow_untouched() -> None:
    words = ["--cache-from", "quay.io/a/b", "-o", "out", "--", "."]
    argv = _argv(*words)
    assert argv[:2] == ["/bin/buildx", "build"]
    assert argv[-len(words) :] == words


def test_the_layer_cache_is_imported_and_exported_without_failing_the_build() -> None:
    argv = _argv(".")
    assert argv[argv.index("--cache-from") + 1] == f"type=registry,ref={CACHE}"
    exported = argv[argv.index("--cache-to") + 1]
    options = "mode=max,compression=zstd,ignore-error=true"
    assert exported == f"type=registry,ref={CACHE},{options}"
    assert "--cache-to" not in _argv("--check", ".")
    assert "--cache-from" not in _argv("--check", ".")


def test_a_cache_that_is_not_there_yet_is_only_exported() -> None:
    argv = _argv(".", warm=False)
    assert "--cache-from" not in argv
    assert "--cache-to" in argv


@pytest.mark.parametrize(
    ("key", "target", "name"),
    [("", "", "default"), ("", "Web_1", "web-1"), ("own", "web", "own"), ("", "_", "default")],
)
def test_where_the_cache_is(key: str, target: str, name: str) -> None:
    assert cache.reference(HOST, "o/r", key, target) == f"{HOST}/cache/trusted/o/r/{name}"


def test_other_cache_keys_are_another_cache() -> None:
    def where(*keys: str, caches: str = HOST) -> str:
        return cache.reference(caches, "o/r", "", "web", keys)

    assert where() == f"{HOST}/cache/trusted/o/r/web"
    assert where("rust-1.85", "v2") == f"{HOST}/cache/trusted/o/r/web__rust-1.85__v2"
    longest = where(*(["k" * 32] * 8))
    assert len(longest) < 100
    different = {where(), where("a"), where("a", "b"), where("b", "a"), where("a-b"), longest}
    assert len(different) == 6
    assert all(grants.is_repository(name.partition("/")[2]) for name in different)
    elsewhere = {where(caches="ghcr.io/a/c"), where("a", caches="ghcr.io/a/c")}
    assert len(elsewhere) == 2


UNTRUSTED: TermsJson = {
    "principal": "woodpecker:o/r#1",
    "trusted": False,
    "why": "it builds a pull request",
    "slot": "7",
    "images": ["images/pr/o/r/7"],
    "cache_to": "untrusted",
    "cache_from": ["untrusted", "trusted"],
    "largest": "medium",
}
TRUSTED: TermsJson = {
    **UNTRUSTED,
    "trusted": True,
    "slot": "",
    "cache_to": "trusted",
    "cache_from": ["trusted"],
}


@pytest.mark.parametrize("caches", [HOST, "ghcr.io/a/c"])
def test_a_build_that_is_not_trusted_writes_its_own_cache_and_reads_the_trusted_one(
    caches: str,
) -> None:
    parsed = args.parse(["."], HOST, docker=True)
    own, others = cache.zones(UNTRUSTED)
    assert cache.zones(TRUSTED) == (cache.TRUSTED, ())
    assert others == (cache.TRUSTED,)
    where, trusted, neighbour = (
        cache.references(caches, "o/r", parsed, ("k",), zone)[""]
        for zone in (own, *others, cache.Zone("untrusted", "8"))
    )
    assert trusted == cache.references(caches, "o/r", parsed, ("k",))[""]
    assert len({where, trusted, neighbour}) == 3
    if caches == HOST:
        name = where.partition("/")[2]
        assert name == "cache/untrusted/o/r/7__default__k"
        lease, pushing = grants.for_lease("o/r", "7"), frozenset({grants.PUSH})
        assert grants.allows(lease, grants.Access(name, pushing))
        assert not grants.allows(lease, grants.Access(trusted.partition("/")[2], pushing))


async def test_of_two_caches_both_are_read_and_one_is_written() -> None:
    async def manifest(request: web.Request) -> web.Response:
        return web.Response(status=404 if "/cold/" in request.path else 200)

    app = web.Application()
    app.router.add_get("/{path:.*}", manifest)
    async with TestServer(app) as server:
        door = cache.Door(f"http://127.0.0.1:{server.port}", "Bearer t", None)
        for own, other, read in (
            ("own", "other", ["own", "other"]),
            ("cold/own", "other", ["other"]),
            ("own", "cold/other", ["own"]),
            ("cold/own", "cold/other", []),
        ):
            caches = await cache.found(door, {"": f"{HOST}/{own}"}, [{"": f"{HOST}/{other}"}])
            parsed = args.parse(["."], HOST, docker=True)
            there = buildx.Folder(Path("/tmp/x"))
            argv = buildx.build_argv(Path("/bin/buildx"), parsed, there, caches)
            given = [argv[n + 1] for n, word in enumerate(argv) if word == "--cache-from"]
            assert given == [f"type=registry,ref={HOST}/{name}" for name in read]
            (kept,) = (argv[n + 1] for n, word in enumerate(argv) if word == "--cache-to")
            assert kept.startswith(f"type=registry,ref={HOST}/{own},")


async def test_whether_there_is_a_cache_yet() -> None:
    asked: list[tuple[str, str]] = []

    async def manifest(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers["Authorization"]))
        return web.Response(status={"none": 404, "some": 200}.get(request.match_info["key"], 503))

    app = web.Application()
    app.router.add_get("/v2/cache/trusted/o/r/{key}/manifests/latest", manifest)
    async with TestServer(app) as server:
        door = cache.Door(f"http://127.0.0.1:{server.port}", "Bearer t", None)
        for key, there in (("none", False), ("some", True), ("broken", True)):
            where = f"{HOST}/cache/trusted/o/r/{key}"
            assert await cache.exists(door, where) is there
    assert asked[0] == ("/v2/cache/trusted/o/r/none/manifests/latest", "Bearer t")
    assert await cache.exists(door, CACHE), "nobody says that there is none"


def test_the_result_stays_in_the_cache_unless_told_otherwise() -> None:
    assert "type=cacheonly" in _argv(".")
    assert "type=cacheonly" not in _argv("--load", ".")
    assert "type=cacheonly" not in _argv("-o", "out", ".")


def test_the_users_metadata_file_is_theirs_and_else_there_is_ours() -> None:
    assert "/tmp/x/metadata.json" in _argv(".")
    assert "/tmp/x/metadata.json" not in _argv("--metadata-file", "m.json", ".")


def test_the_environment_points_at_this_build_only() -> None:
    there = buildx.Folder(Path("/tmp/x"))
    environ = {
        "PATH": "/bin",
        "BUILDX_BUILDER": "theirs",
        "BUILDKIT_HOST": "tcp://theirs",
        "DOCKER_CONTEXT": "theirs",
        "DOCKER_AUTH_CONFIG": "{}",
        "DOCKER_CONFIG": "/home/me/.docker",
        "SOURCE_DATE_EPOCH": "1",
    }
    found = buildx.environment(environ, args.parse(["."], HOST), there)
    assert found == {
        "PATH": "/bin",
        "SOURCE_DATE_EPOCH": "1",
        "BUILDX_BUILDER": "mayfly",
        "BUILDX_CONFIG": "/tmp/x/buildx",
        "DOCKER_CONFIG": "/tmp/x/docker",
        "BUILDX_METADATA_PROVENANCE": "disabled",
    }


def test_proxies_are_dockers_and_in_a_file_that_others_cannot_read() -> None:
    """No command line has their passwords, and buildx's own way out stays as it is."""
    with buildx.folder() as there:
        there.write_logins({"auths": {}}, {"http_proxy": "http://u:p@x", "no_proxy": ""})
        file = there.docker_config / "config.json"
        assert json.loads(file.read_text()) == {
            "auths": {},
            "proxies": {"default": {"httpProxy": "http://u:p@x"}},
        }
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_folder_is_private_and_gone_afterwards() -> None:
    with buildx.folder() as there:
        there.write_logins({"auths": {}})
        assert stat.S_IMODE(there.root.stat().st_mode) == 0o700
        assert stat.S_IMODE((there.docker_config / "config.json").stat().st_mode) == 0o600
    assert not there.root.exists()


def test_what_a_killed_build_left_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    program = (
        "from mayfly.build import buildx\n"
        "with buildx.folder() as there:\n"
        "    there.write_logins({'auths': {'r': {'auth': 'hush'}}})\n"
        "    print(there.root, flush=True)\n"
        "    input()\n"
    )
    words = (sys.executable, "-c", program)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        its = Path(other.stdout.readline().strip())
        with buildx.folder() as ours:
            assert (its / "docker/config.json").exists()
            with buildx.folder():
                assert ours.root.exists()
        other.send_signal(signal.SIGKILL)
    assert (its / "docker/config.json").exists()
    elsewhere, foreign = tmp_path / "elsewhere", tmp_path / "mayfly-link"
    elsewhere.mkdir()
    (elsewhere / buildx.HELD).touch()
    foreign.symlink_to(elsewhere)
    (tmp_path / "mayfly-of-another-kind").mkdir()
    with buildx.folder():
        assert (elsewhere / buildx.HELD).exists()
        assert not its.exists()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["elsewhere", "mayfly-link", "mayfly-of-another-kind"]
