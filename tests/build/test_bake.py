"""A definition as the real buildx reads it, what Mayfly makes of it, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly import flow, tools
from mayfly.build import args, bake, buildx, cache, check
from mayfly.config import Config
from mayfly.errors import Denied, MachineUnfit, UsageError
from mayfly.registry.reference import host_of

HOST = "registry.mayfly.internal:5000"
HCL = """
variable "TAG" { default = "1" }
group "default" { targets = ["web", "tool"] }
target "base" { context = "web" }
target "web" {
  inherits = ["base"]
  contexts = { lib = "target:lib" }
  tags = ["images/o/r:${TAG}", "ghcr.io/a/b"]
  args = { SHELL = "$${HOME}" }
  cache-from = ["type=registry,ref=quay.io/x/y"]
}
target "lib" { context = "lib" }
target "tool" {
  dockerfile-inline = "FROM scratch"
  target = "stage"
}
"""
Parse = Callable[..., args.BuildArgs]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a definition, and two contexts."""
    monkeypatch.chdir(tmp_path)
    for name in ("BUILDX_BAKE_FILE", "SOURCE_DATE_EPOCH", "TAG"):
        monkeypatch.delenv(name, raising=False)
    for name in ("web", "lib"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "docker-bake.hcl").write_text(HCL)
    return tmp_path


@pytest.fixture
def parse() -> Parse:
    """`bake.parse` with the buildx that we ship."""
    try:
        program = tools.tools_dir() / "buildx"
    except MachineUnfit:
        pytest.skip("the tools are not built")

    def parsed(*words: str, docker: bool = False, **environ: str) -> args.BuildArgs:
        def read(asked: Any) -> Any:
            return bake.printed(lambda: program, {**os.environ, **environ}, asked)

        return bake.parse(words, HOST, read, docker=docker)

    return parsed


def test_the_plan_is_what_buildx_resolves_and_its_images_are_whole(parse: Parse) -> None:
    found = parse("--push", "--var", "TAG=7", "web")
    web, lib = (next(t for t in found.targets if t.name == name) for name in ("web", "lib"))
    assert web.tags == (f"{HOST}/images/o/r:7", "ghcr.io/a/b")
    assert found.pushed == web.tags
    assert (web.context, web.dockerfile, web.push) == ("web", "", True)
    assert {host_of(name) for name in found.writes} == {HOST, "ghcr.io"}
    assert {host_of(name) for name in found.reads} == {"quay.io"}
    assert not lib.push, "what a target is built from is not pushed"
    assert found.plan is not None
    assert found.plan["target"]["web"]["args"] == {"SHELL": "$${HOME}"}, "still to be read once"
    assert found.target == "lib,web"


def test_what_is_about_the_run_goes_on_and_what_is_about_the_definition_does_not(
    parse: Parse,
) -> None:
    found = parse(
        *("-f", "docker-bake.hcl", "--set", "web.args.X=1", "--no-cache", "--push=true", "--pull"),
        *("--progress", "plain", "-j", "2", "--metadata-file=m", "--mayfly-size", "t2"),
        *("--mayfly-repo=o/r", "--allow", "fs.read=/etc", "web"),
    )
    run = ["--progress", "plain", "-j", "2", "--metadata-file=m", "--allow", "fs.read=/etc"]
    assert list(found.buildx) == run
    assert (found.progress, found.metadata_file) == ("plain", "m")
    assert (found.size, found.repo) == ("t2", "o/r")
    assert found.plan is not None
    assert found.plan["target"]["web"]["no-cache"] is True
    assert found.plan["target"]["web"]["args"]["X"] == "1"


def test_each_target_has_a_cache_beside_the_users_own(parse: Parse, here: Path) -> None:
    found = parse("--push", "web")
    where = cache.references(HOST, "o/r", found)
    assert where["web"] == f"{HOST}/cache/trusted/o/r/web"
    caches = {name: cache.Cache(ref, name == "web") for name, ref in where.items()}
    done = buildx.plan(found, caches)
    assert done is not None
    theirs, ours = done["target"]["web"]["cache-from"]
    assert theirs == {"type": "registry", "ref": "quay.io/x/y"}
    assert ours == {"type": "registry", "ref": where["web"]}
    (export,) = done["target"]["web"]["cache-to"]
    assert export["ref"] == where["web"]
    assert export["ignore-error"] == "true"
    assert "cache-from" not in done["target"]["lib"], "a cold one is not asked for"
    keyed = cache.references(HOST, "o/r", parse("--mayfly-cache-key", "pr", "web"))
    assert keyed["web"].endswith("/pr-web")
    # buildx reads it again and finds just that.
    (here / "again.json").write_text(json.dumps(done))
    again = parse("-f", "again.json")
    assert again.plan is not None
    assert again.plan["target"] == done["target"]


def test_what_nobody_takes_out_stays_in_the_cache(parse: Parse) -> None:
    found = parse("web", "tool")
    assert not found.kept
    done = buildx.plan(found, {})
    assert done is not None
    assert done["target"]["tool"]["output"] == [{"type": "cacheonly"}]
    assert parse("--set", "*.output=out", "web", "tool").kept
    assert parse("--check").kept


def test_a_check_leaves_the_caches_alone(parse: Parse) -> None:
    found = parse("--check", "web")
    done = buildx.plan(found, {"web": cache.Cache("ref", warm=True)})
    assert done is not None
    assert "cache-to" not in done["target"]["web"]


def test_a_definition_by_compose_by_json_and_by_standard_input(parse: Parse, here: Path) -> None:
    (here / "docker-bake.hcl").unlink()
    (here / "compose.yaml").write_text(
        "services:\n  app:\n    image: images/o/r/app:1\n    build: web\n"
    )
    assert parse("--push").pushed == (f"{HOST}/images/o/r/app:1",)
    (here / "x.json").write_text('{"target": {"j": {"context": "lib"}}}')
    assert parse("-f", "x.json", "j").names == ("j",)
    with (here / "x.json").open() as definition:
        kept = os.dup(0)
        os.dup2(definition.fileno(), 0)
        try:
            assert parse("-f", "-", "j").names == ("j",)
        finally:
            os.dup2(kept, 0)
            os.close(kept)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nope"], "failed to find target nope"),
        (["-f", "nope.hcl"], "nope.hcl"),
        (["--set", "web"], "invalid override"),
        (["--builder", "x"], "--builder cannot be chosen"),
        (["--allow", "security.insecure"], "security.insecure is refused"),
        (["--allow=network.host"], "network.host is refused"),
        (["--set", "web.network=host", "web"], "target web asks for network.host"),
        (["--set", "lib.entitlement=security.insecure", "web"], "asks for security.insecure"),
        (["--load", "web"], "no Docker daemon answers"),
        (["--push", "tool"], "target tool: --push needs a name"),
        (["--set", "web.tags=A B", "web"], "is no image name"),
        (["--tag", "x"], "unknown flag --tag"),
        (["--mayfly-specs", "x"], "--mayfly-specs is no option of mayfly bake"),
        (["--progress", "loud"], "--progress 'loud' is unknown"),
        (["https://example.org/r.git", "web"], "would have to be fetched first"),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_said_in_one_line(words: list[str], says: str, parse: Parse) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert says in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_broken_definition_is_one_line_with_its_place(parse: Parse, here: Path) -> None:
    (here / "docker-bake.hcl").write_text('target "web" {\n  context = \n}\n')
    with pytest.raises(UsageError, match=r"docker-bake.hcl:2,\d+"):
        parse()
    (here / "docker-bake.hcl").write_text('group "default" { targets = [] }\n')
    with pytest.raises(UsageError):
        parse()


def test_a_context_or_a_dockerfile_that_is_missing_names_its_target(
    parse: Parse, here: Path
) -> None:
    check.files(parse("web", "tool"), here)
    shutil.rmtree(here / "lib")
    with pytest.raises(UsageError, match="target lib: the build context lib is not there"):
        check.files(parse("web"), here)
    with pytest.raises(UsageError, match="target web: the Dockerfile web/Nope is not there"):
        check.files(
            parse("--set", "web.dockerfile=Nope", "--set", "web.contexts.lib=", "web"), here
        )
    with pytest.raises(UsageError, match="the named context nowhere is not a directory"):
        check.files(parse("--set", "web.contexts.lib=nowhere", "web"), here)


def test_paths_outside_the_directory_need_the_users_leave_as_with_buildx(
    parse: Parse, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (here / "docker-bake.json").write_text(
        json.dumps({"target": {"tool": {"output": [f"type=local,dest={outside}/x"]}}})
    )
    with pytest.raises(UsageError, match=f"uses {outside}/x, which is outside") as caught:
        check.leave(parse("tool"), {}, here)
    assert caught.value.hint.endswith(f"--allow fs.write={outside}/x")
    check.leave(parse("--allow", f"fs.write={outside}", "tool"), {}, here)
    check.leave(parse("--allow", "fs=*", "tool"), {}, here)
    check.leave(parse("tool"), {"BUILDX_BAKE_ENTITLEMENTS_FS": "0"}, here)
    # Who names the path at the prompt has given leave; buildx is told so.
    named = parse("--set", f"t*.output=type=local,dest={outside}/y", "tool")
    assert named.buildx == (f"--allow=fs={outside}/y",)
    check.leave(named, {}, here)


def test_a_push_that_the_registry_would_refuse_is_refused_before_any_vm(here: Path) -> None:
    with pytest.raises(Denied, match="may not push to images/o/r"):
        flow.prepare(
            ["--push", "--mayfly-repo", "a/b", "web"], Config(), os.environ, here, verb="bake"
        )
    asked = flow.prepare(["--mayfly-repo", "a/b", "web"], Config(), os.environ, here, verb="bake")
    assert (asked.repo, asked.args.pushed) == ("a/b", ())


def test_a_plan_is_run_without_what_says_how_definitions_are_read(parse: Parse) -> None:
    found = parse("--push", "web")
    there = buildx.Folder(Path("/tmp/x"))
    argv = buildx.build_argv(Path("/bin/buildx"), found, there, {})
    assert list(argv[1:]) == [
        *("bake", "--metadata-file", "/tmp/x/metadata.json", "--file", "/tmp/x/plan.json"),
    ]
    env = buildx.environment({"BUILDX_BAKE_FILE": "x", "BUILDX_BAKE_FILE_RELATIVE_PATHS": "1"},
                             found, there)  # fmt: skip
    assert not {"BUILDX_BAKE_FILE", "BUILDX_BAKE_FILE_RELATIVE_PATHS"} & env.keys()


def test_contexts_relative_to_their_file_stay_where_they_are(parse: Parse, here: Path) -> None:
    (here / "sub" / "app").mkdir(parents=True)
    (here / "sub" / "b.json").write_text('{"target": {"a": {"context": "app"}}}')
    found = parse("-f", "sub/b.json", "a", BUILDX_BAKE_FILE_RELATIVE_PATHS="1")
    assert found.targets[0].context == "sub/app"
