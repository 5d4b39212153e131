"""2,000 sets of settings that Woodpecker could pass: one clear error each, or the right plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mayfly.build import args
from mayfly.errors import MayflyError, UsageError
from mayfly.launcher import main, plan, values
from mayfly.launcher.settings import BY_NAME, TABLE, Kind, Use

NOW = datetime(2026, 11, 28, tzinfo=UTC)
SETS = 2000
REGISTRY = "registry.mayfly.internal:5000"

word = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)
name = st.from_regex(r"[A-Z][A-Z_]{0,5}", fullmatch=True)
value = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=","), max_size=9)
junk = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(word, inner, max_size=3),
        max_leaves=8,
    ).map(json.dumps),
    st.sampled_from(["[", "{}", "[]", "[[]]", "{'a':1}", "true", "-1", "1e999", "=", ",", "\\,"]),
)


def joined(each: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, Any]]:
    """A list, as scalars joined by commas or as JSON, with what it means."""
    lists = st.lists(each, min_size=1, max_size=3)
    return lists.flatmap(
        lambda found: st.sampled_from([",".join(found), json.dumps(found)]).map(
            lambda text: (text, tuple(found))
        )
    )


def pairs(found: Mapping[str, str]) -> st.SearchStrategy[tuple[str, Any]]:
    lines = [f"{key}={each}" for key, each in found.items()]
    forms = [json.dumps(found), json.dumps(lines), json.dumps([found])]
    if not any(each != each.strip() or "\\" in each for each in found.values()):
        forms.append(",".join(lines))
    return st.sampled_from(forms).map(lambda text: (text, tuple(found.items())))


GOOD: Mapping[str, st.SearchStrategy[tuple[str, Any]]] = {
    "repo": joined(st.from_regex(r"images/team/[a-z]{1,5}|[a-z]{1,5}/[a-z]{1,5}", fullmatch=True)),
    "tags": joined(st.from_regex(r"[a-z0-9_][a-zA-Z0-9_.-]{0,8}", fullmatch=True)),
    "dry_run": st.booleans().map(lambda on: (str(on).lower(), on)),
    "no_cache": st.sampled_from([("True", True), ("0", False), ("yes", True), ("f", False)]),
    "cpu": st.integers(1, 256).map(lambda n: (str(n), n)),
    "memory_gb": st.floats(0.25, 4096).map(lambda n: (repr(n), n)),
    "target": word.map(lambda text: (text, text)),
    "platforms": st.sampled_from(["linux/amd64", "linux/amd64,linux/arm64"]).map(
        lambda text: (text, tuple(text.split(",")))
    ),
    "build_args": st.dictionaries(name, value, min_size=1, max_size=3).flatmap(pairs),
    "secrets": st.dictionaries(
        word | st.just("id"), st.text("hush-123", min_size=3, max_size=9), min_size=1, max_size=2
    ).map(lambda d: (json.dumps(d), tuple(d.items()))),
    "supersede": st.booleans().map(lambda on: (str(on).lower(), on)),
    "size": word.map(lambda text: (text, text)),
}


@st.composite
def sets(draw: Callable[..., Any]) -> tuple[dict[str, str], dict[str, Any], set[str]]:
    """Variables, what the good ones mean, and the settings that hold junk."""
    environ, means = {}, {}
    # Sorted: the order of a set differs from run to run, and with it what is drawn.
    for setting in sorted(draw(st.sets(st.sampled_from(sorted(GOOD)), max_size=6))):
        text, meaning = draw(GOOD[setting])
        alias = draw(st.sampled_from(TABLE[setting].names))
        environ[f"PLUGIN_{alias.upper()}"], means[setting] = text, meaning
    rest = sorted(set(BY_NAME) - {n for setting in means for n in TABLE[setting].names})
    strange = draw(st.sets(st.sampled_from(rest) | word, max_size=4)) if draw(st.booleans()) else ()
    strange = sorted(strange)
    for other in strange:
        environ[f"PLUGIN_{other.upper()}"] = draw(junk)
    return environ, means, {BY_NAME[n].name if n in BY_NAME else n for n in strange}


@settings(
    max_examples=SETS, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(sets())
def test_a_clear_error_or_a_correct_plan(
    drawn: tuple[dict[str, str], dict[str, Any], set[str]],
) -> None:
    environ, means, strange = drawn
    settings_ = values.given(environ)
    made = plan.plan(settings_, environ, {}, NOW)
    for line in made.faults:
        assert line.partition(":")[0] and "\n" not in line and "Traceback" not in line
        assert len(line) < 300
    if not strange:
        missing = "repo" not in means and not means.get("dry_run")
        assert [f.partition(":")[0] for f in made.faults] == ["repo"] * missing
    for setting, meaning in means.items():
        assert settings_.values[setting] == meaning
    try:
        build = args.parse(made.argv, REGISTRY)
    except UsageError as error:
        assert strange, f"only good settings, and yet: {error}"
        assert str(error) and "\n" not in str(error).replace("\\n", "")
        return
    correct(build, made, means, strange)


def correct(build: args.BuildArgs, made: plan.Plan, means: dict[str, Any], odd: set[str]) -> None:
    """The arguments say what the settings mean, as far as no junk says something else."""
    if "repo" in means and not odd & {"auto_tag", "tags_file", "env_file"}:
        tags = dict.fromkeys(means.get("tags", ("latest",) if "tags" not in odd else ()))
        if "tags" not in odd:
            wanted = [f"{repo}:{tag}" for repo in means["repo"] for tag in tags]
            whole = [f"{REGISTRY}/{w}" if w.startswith("images/") else w for w in wanted]
            assert list(build.tags) == whole
        if not odd & {"output", "dry_run"}:
            assert build.push is (not means.get("dry_run", False) and bool(build.tags))
    for secret, hidden in means.get("secrets", ()):
        flag = next(w for w in build.buildx if w.startswith(f"id={secret},env="))
        assert made.environ[flag.rpartition("=")[2]] == hidden
        assert hidden in made.secrets
    if "build_args" in means and not odd & {"build_args_from_env"}:
        for key, each in means["build_args"]:
            assert f"{key}={each}" in build.buildx
    for setting in ("cpu", "memory_gb"):
        if setting in means:
            assert made.declares[setting] == means[setting]
    assert made.supersede is means.get("supersede", made.supersede)
    assert ("--no-cache" in build.buildx) is means.get("no_cache", "--no-cache" in build.buildx)
    if "size" in means:
        assert build.size == means["size"]


def test_nothing_raises_on_the_way_to_a_build_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sets through all that is looked at before a lease is asked for."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    monkeypatch.chdir(tmp_path)
    ci = {"CI_REPO": "team/app", "CI_COMMIT_REF": "refs/heads/main"}

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(sets())
    def run(drawn: tuple[dict[str, str], dict[str, Any], set[str]]) -> None:
        environ, _, odd = drawn
        if odd & {"context", "spec", "env_file", "ca"}:  # they name what may really be there
            return
        made = main.planned({**ci, **environ, "MAYFLY_URL": "https://farm", "MAYFLY_TOKEN": "t"})
        try:
            main._prepared(made)
        except MayflyError as error:
            assert error.exit_status in {2, 3, 10, 21}
            assert all(str(each) for each in (error, *error.also))

    run()


@pytest.mark.parametrize("setting", sorted(TABLE))
def test_every_setting_takes_a_value_of_its_kind(setting: str) -> None:
    good = {
        Kind.TEXT: "{}" if setting == "config" else "x",
        Kind.FLAG: "true",
        Kind.INTEGER: "2",
        Kind.NUMBER: "2.5",
        Kind.WORDS: "a,b",
        Kind.PAIRS: "A=1",
        Kind.ENTRIES: "type=local,dest=x",
        Kind.KEYS: "default",
        Kind.SECRETS: "id=a,src=x",
        Kind.LOGINS: '[{"registry":"r","username":"u","password":"p"}]',
    }[TABLE[setting].kind]
    found = values.given({f"PLUGIN_{setting.upper()}": good})
    refused = TABLE[setting].use is Use.REFUSED
    assert [f.partition(":")[0] for f in found.faults] == [setting] * refused
