"""What settings amount to: arguments of buildx, logins, labels, and every fault."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from mayfly.build import args
from mayfly.build.mask import Mask
from mayfly.launcher import logins
from mayfly.launcher.plan import Plan, named, plan
from mayfly.launcher.values import given

NOW = datetime(2026, 11, 28, 4, 5, 6, 789, tzinfo=UTC)
CI = {
    "CI_REPO": "team/app",
    "CI_REPO_URL": "https://forge.example/team/app",
    "CI_REPO_CLONE_URL": "https://bot:hush@forge.example/team/app.git",
    "CI_REPO_DEFAULT_BRANCH": "main",
    "CI_COMMIT_REF": "refs/heads/main",
    "CI_COMMIT_SHA": "c0ffee",
    "CI_COMMIT_TIMESTAMP": "1790000000",
    "CI_PIPELINE_NUMBER": "7",
    "PATH": "/usr/bin",
}


def of(
    files: Mapping[str, str | None] | None = None, ci: Mapping[str, str] = CI, **settings: str
) -> Plan:
    environ = {**ci, **{f"PLUGIN_{name.upper()}": value for name, value in settings.items()}}
    return plan(given(environ), environ, files or {}, NOW)


def parsed(made: Plan) -> args.BuildArgs:
    return args.parse(made.argv, "registry.mayfly.internal:5000")


def values(made: Plan, flag: str) -> list[str]:
    words = list(made.argv)
    return [words[n + 1] for n, word in enumerate(words) if word == f"--{flag}"]


def test_a_build_that_is_pushed() -> None:
    made = of(repo="images/team/app,ghcr.io/acme/app", tags="1.2,latest")
    assert made.faults == made.remarks == ()
    build = parsed(made)
    assert build.pushed == (
        "registry.mayfly.internal:5000/images/team/app:1.2",
        "registry.mayfly.internal:5000/images/team/app:latest",
        "ghcr.io/acme/app:1.2",
        "ghcr.io/acme/app:latest",
    )
    assert (build.context, build.dockerfile, build.progress) == (".", "", "plain")


def test_labels_and_annotations_of_where_an_image_comes_from() -> None:
    made = of(repo="images/team/app", labels="a=b", ci={**CI, "CI_COMMIT_REF": "refs/tags/v1.2.3"})
    wanted = {
        "org.opencontainers.image.created": "2026-11-28T04:05:06Z",
        "org.opencontainers.image.source": "https://forge.example/team/app.git",
        "org.opencontainers.image.revision": "c0ffee",
        "org.opencontainers.image.url": "https://forge.example/team/app",
        "org.opencontainers.image.version": "1.2.3",
    }
    pairs = [f"{name}={value}" for name, value in wanted.items()]
    assert values(made, "label") == [*pairs, "a=b"]
    assert values(made, "annotation") == pairs
    several = of(repo="images/team/app", platforms="linux/amd64,linux/arm64")
    assert values(several, "platform") == ["linux/amd64,linux/arm64"]
    assert all(v.startswith("index,manifest:") for v in values(several, "annotation"))
    assert values(of(repo="a/b", default_labels="false"), "label") == []


@pytest.mark.parametrize(
    ("settings", "pushes", "outputs"),
    [
        ({"repo": "images/team/app"}, True, []),
        ({"repo": "images/team/app", "dry_run": "true"}, False, []),
        ({"dry_run": "true"}, False, []),
        (
            {"repo": "images/team/app", "output": "type=oci,dest=x.tar"},
            True,
            ["type=oci,dest=x.tar", "type=registry"],
        ),
        ({"output": "type=local,dest=out"}, False, ["type=local,dest=out"]),
        (
            {"repo": "a/b", "output": "type=image,push=true"},
            True,
            ["type=image,push=true"],
        ),
        (
            {"repo": "a/b", "output": "type=oci,dest=x.tar", "dry_run": "true"},
            False,
            ["type=oci,dest=x.tar"],
        ),
    ],
)
def test_what_is_pushed(settings: dict[str, str], pushes: bool, outputs: list[str]) -> None:
    made = of(None, CI, **settings)
    assert made.faults == ()
    assert parsed(made).push is pushes
    assert values(made, "output") == outputs


def test_tags_of_a_file_of_a_version_and_by_default() -> None:
    def tags(made: Plan) -> list[str]:
        return [tag.rpartition(":")[2] for tag in values(made, "tag")]

    version = {**CI, "CI_COMMIT_REF": "refs/tags/v1.2.3"}
    assert tags(of(repo="a/b")) == ["latest"]
    assert tags(of(repo="a/b", files={".tags": "x, y\nz"})) == ["x", "y", "z"]
    assert tags(of(repo="a/b", tags="q", files={".tags": "x"})) == ["q"]
    assert tags(of(repo="a/b", tags="q", tags_file="t", files={"t": "v"})) == ["v"]
    assert tags(of(repo="a/b", auto_tag="true", ci=version)) == ["1", "1.2", "1.2.3"]
    assert tags(of(repo="a/b", auto_tag="true", tags="q")) == ["latest", "q"]
    assert tags(of(repo="a/b", auto_tag="true", default_tag="edge")) == ["edge"]
    assert tags(of(repo="a/b", auto_tag="true", default_suffix="arm")) == ["arm"]
    branch = of(repo="a/b", auto_tag="true", ci={**CI, "CI_COMMIT_REF": "refs/heads/x"})
    assert (tags(branch), branch.faults, parsed(branch).push) == ([], (), False)
    assert branch.remarks == ("auto_tag has no tag for refs/heads/x: nothing is pushed",)


def test_build_arguments_and_whose_word_counts() -> None:
    made = of(
        repo="a/b",
        build_args='{"A":"1","HTTPS_PROXY":"http://mine"}',
        build_args_from_env="PATH,ABSENT,A",
        http_proxy="http://p",
        https_proxy="http://p",
        no_proxy="x.example",
    )
    assert values(made, "build-arg") == ["SOURCE_DATE_EPOCH=1790000000", "PATH", "A=1"]
    assert made.proxies == {
        "http_proxy": "http://p",
        "https_proxy": "http://mine",
        "no_proxy": "x.example",
    }


def test_a_value_of_the_environment_and_a_proxys_password_are_on_no_command_line() -> None:
    """Everybody on the machine may read that; the environment and files of the build's may not."""
    ci = {**CI, "NPM_TOKEN": "hush-npm", "https_proxy": "http://u:hush-env@p"}
    made = of(
        repo="a/b",
        build_args_from_env="NPM_TOKEN,PLUGIN_MINE",
        build_args='["https_proxy"]',
        http_proxy="http://u:hush-p@p:3128",
        mine="hush-mine",
        secrets='{"npm":"hush-secret"}',
        username="u",
        password="hush-login",
        token="hush-token",
        ci=ci,
    )
    assert made.faults == ()
    assert "hush" not in " ".join(made.argv)
    assert values(made, "build-arg")[1:] == ["NPM_TOKEN", "PLUGIN_MINE"]
    assert {n: made.environ[n] for n in ("NPM_TOKEN", "PLUGIN_MINE")} == {
        "NPM_TOKEN": "hush-npm",
        "PLUGIN_MINE": "hush-mine",
    }
    assert made.proxies == {
        "http_proxy": "http://u:hush-p@p:3128",
        "https_proxy": "http://u:hush-env@p",
    }
    hidden = Mask(made.secrets).text("hush-p hush-env")
    assert hidden == "******** ********"


def test_secrets_go_by_variables_and_nothing_else_of_the_settings_does() -> None:
    made = of(
        repo="a/b",
        secrets='{"npm":"hush-npm"}',
        password="hush-word",
        username="me",
        token="hush-token",
        url="https://farm.example:5001",
    )
    assert values(made, "secret") == ["id=npm,env=MAYFLY_SECRET_0"]
    assert made.environ["MAYFLY_SECRET_0"] == "hush-npm"
    assert not any(name.startswith("PLUGIN_") for name in made.environ)
    assert "MAYFLY_TOKEN" not in made.environ and made.farm["MAYFLY_TOKEN"] == "hush-token"
    assert made.farm["MAYFLY_SERVER__NAME"] == "farm.example"
    assert made.farm["MAYFLY_SERVER__LISTEN"] == "127.0.0.1:5001"
    assert "hush" not in repr(made) and "hush" not in " ".join(made.argv)
    shown = Mask(made.secrets).text("hush-npm hush-word hush-token me:hush-word")
    assert "hush" not in shown


def test_logins_by_variables_are_taken_and_passed_to_nobody() -> None:
    ci = {**CI, "DOCKER_USERNAME": "me", "DOCKER_PASSWORD": "hush", "CI_NETRC_PASSWORD": "hushed"}
    made = of(None, ci, repo="a/b")
    assert made.faults == ()
    auths = json.loads(made.environ["DOCKER_AUTH_CONFIG"])["auths"]
    assert set(auths) == {"https://index.docker.io/v1/"}
    assert not {"DOCKER_USERNAME", "DOCKER_PASSWORD"} & set(made.environ)
    assert {"hush", "hushed"} <= set(made.secrets)


def test_a_secret_may_be_named_by_variable_or_file() -> None:
    made = of(
        files={"key": "first\nsecond\n"},
        repo="a/b",
        secrets=r'["id=a,env=PLUGIN_A_WORD","id=b,src=key"]',
        a_word="hush",
    )
    assert made.faults == ()
    assert values(made, "secret") == ["id=a,env=PLUGIN_A_WORD", "id=b,src=key"]
    assert made.environ["PLUGIN_A_WORD"] == "hush"
    assert Mask(made.secrets).text("hush first second") == " ".join(["********"] * 3)


def test_a_secret_is_hidden_wherever_buildx_finds_it() -> None:
    """By its id alone it is a variable or a file; `type=env` makes `src` a variable."""
    made = of(
        files={"npmrc": "hush-file"},
        repo="a/b",
        secrets=json.dumps(["id=npmrc", {"id": "x", "type": "env", "src": "PLUGIN_A_WORD"}]),
        a_word="hush-word",
        http_proxy="me:hush-proxy@proxy:3128",
    )
    assert made.faults == ()
    assert made.environ["PLUGIN_A_WORD"] == "hush-word"
    shown = Mask(made.secrets).text("hush-file hush-word me:hush-proxy@proxy")
    assert shown == "******** ******** ********@proxy"


def test_logins_are_dockers_own_and_the_first_counts() -> None:
    more = [
        {"registry": "https://ghcr.io", "username": "b", "password": "2"},
        {"registry": "docker.io", "username": "c", "password": "3"},
    ]
    config = {"auths": {"quay.io": {"auth": "eDp5eno="}, "ghcr.io": {"auth": "eg=="}}}
    made = of(
        repo="a/b",
        username="a",
        password="1",
        registry="https://index.docker.io/v1/",
        logins=json.dumps(more),
        config=json.dumps(config),
    )
    auths = json.loads(made.environ["DOCKER_AUTH_CONFIG"])["auths"]
    assert {name: base64.b64decode(entry["auth"]).decode() for name, entry in auths.items()} == {
        "https://index.docker.io/v1/": "a:1",
        "ghcr.io": "b:2",
        "quay.io": "x:yzz",
    }
    assert {"b:2", "yzz"} <= set(made.secrets)
    assert not made.environ["DOCKER_CONFIG"].startswith("/root")


@pytest.mark.parametrize(
    ("registry", "wanted"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("https://Codeberg.org", "codeberg.org"),
        ("http://forge.example:3000/x", "forge.example:3000"),
        ("ghcr.io/acme", "ghcr.io"),
    ],
)
def test_a_registry_by_any_of_its_names(registry: str, wanted: str) -> None:
    assert logins.host(registry) == wanted


def test_what_the_farm_is_asked_for() -> None:
    made = of(
        repo="images/team/app",
        cpu="4",
        memory_gb="7.5",
        oom_retry="false",
        size="medium",
        spec="none",
        cache_key="web",
        grow="false",
        supersede="true",
    )
    assert made.declares == {"cpu": 4, "memory_gb": 7.5, "oom_retry": False}
    assert made.supersede
    build = parsed(made)
    assert (build.size, build.spec, build.cache_key, build.grow) == ("medium", "none", "web", False)


def test_the_dockerfile_is_beside_the_step_or_beside_the_context() -> None:
    def environ(**settings: str) -> dict[str, str]:
        return {f"PLUGIN_{name.upper()}": value for name, value in settings.items()}

    assert named(given(environ(context="web", tags="x"))) == ("Dockerfile",)
    assert parsed(of(repo="a/b", context="web")).dockerfile == ""
    there = of(repo="a/b", context="web", files={"Dockerfile": "FROM x"})
    assert parsed(there).dockerfile == "Dockerfile"
    assert parsed(of(repo="a/b", dockerfile="x/D")).dockerfile == "x/D"


def test_somebody_elses_registry_can_be_the_farms() -> None:
    made = of(repo="images/team/app", url="https://farm", token="t", farm_registry="ghcr.io/acme")
    assert made.farm["MAYFLY_REGISTRY__KIND"] == "external"
    assert made.farm["MAYFLY_REGISTRY__IMAGES"] == "ghcr.io/acme"
    assert made.farm["MAYFLY_SERVER__LISTEN"].endswith(":443")


def test_all_faults_come_at_once() -> None:
    made = of(
        tags="not ok",
        repo="images/team/app",
        username="me",
        memory_gb="-1",
        cpu="many",
        config="x",
        url="https://farm",
        tags_file="absent",
        output="type=tar",
        nonsense="1",
    )
    names = [fault.partition(":")[0] for fault in made.faults]
    assert sorted(names) == sorted(
        ["cpu", "nonsense", "config", "password", "tags_file", "output", "token", "memory_gb"]
    )
    assert of().faults == ("repo: is missing - name the image, or set `dry_run` or `output`",)
    assert of(repo="a/b:1").faults == ("repo: 'a/b:1' has a tag - put it into `tags`",)
    assert of(repo="a/b", tags="not ok").faults[0].startswith("tags: 'not ok' is no tag")
