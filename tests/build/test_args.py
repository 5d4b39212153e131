"""Splitting: nothing of the user's is lost, moved or changed; nothing of ours reaches buildx."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly import tools
from mayfly.build import args, flags
from mayfly.errors import MachineUnfit, UsageError
from mayfly.registry.reference import host_of

HOST = "registry.mayfly.internal:5000"
# Neither a refused value, nor a name in Mayfly's registry, nor a flag.
LETTERS = "abcxyz019"
NAME = st.text(LETTERS, min_size=1, max_size=8)
WORD = st.builds(str.__add__, NAME, st.text(LETTERS + "=,./-", max_size=8))
TAG = st.builds("/".join, st.lists(NAME, min_size=1, max_size=3))
PLAIN = sorted(
    flags.BUILD.valued - {"builder", "network", "output", "progress", "tag", "call", "print"}
)
SWITCH = sorted(flags.BUILD.switches - {"load", "push", "help", "check"})
SHORT_VALUED = sorted(s for s, name in flags.BUILD.short.items() if name in PLAIN)


@st.composite
def _valued(draw: st.DrawFn) -> list[str]:
    name, value = draw(st.sampled_from(PLAIN)), draw(WORD)
    return draw(st.sampled_from([[f"--{name}", value], [f"--{name}={value}"]]))


@st.composite
def _short(draw: st.DrawFn) -> list[str]:
    letter, value = draw(st.sampled_from(SHORT_VALUED)), draw(WORD)
    bunch = draw(st.sampled_from(["", "q", "Dq"]))
    forms = [[f"-{bunch}{letter}", value], [f"-{bunch}{letter}{value}"]]
    return draw(st.sampled_from([*forms, [f"-{bunch}{letter}={value}"]]))


@st.composite
def _tag(draw: st.DrawFn) -> list[str]:
    value = draw(TAG)
    return draw(st.sampled_from([["-t", value], [f"-t{value}"], [f"--tag={value}"]]))


@st.composite
def _own(draw: st.DrawFn) -> list[str]:
    name = draw(st.sampled_from(sorted(flags.OWN)))
    if name in flags.OWN_SWITCHES:
        return [draw(st.sampled_from([f"--mayfly-{name}", f"--mayfly-{name}=false"]))]
    value = draw(NAME)
    return draw(st.sampled_from([[f"--mayfly-{name}", value], [f"--mayfly-{name}={value}"]]))


USERS = st.one_of(_valued(), _short(), _tag(), st.sampled_from([[f"--{s}"] for s in SWITCH]))
MIXED = st.lists(st.one_of(USERS.map(lambda w: (False, w)), _own().map(lambda w: (True, w))))


@given(MIXED, st.integers(0, 20), st.booleans())
def test_users_arguments_reach_buildx_in_order_and_ours_never_do(
    mixed: list[tuple[bool, list[str]]], place: int, terminated: bool
) -> None:
    context = (False, ["."])
    mixed.insert(min(place, len(mixed)), context)
    if terminated:
        mixed.remove(context)
        mixed.append((False, ["--", "."]))
    argv = [word for _, words in mixed for word in words]
    parsed = args.parse(argv, HOST)
    assert list(parsed.buildx) == [word for own, words in mixed if not own for word in words]
    assert not any(word.startswith("--mayfly-") for word in parsed.buildx)
    assert parsed.context == "."


@given(st.lists(st.text(max_size=12), max_size=8), st.sampled_from([flags.BUILD, flags.BAKE]))
def test_any_words_split_and_join_again_or_are_refused(argv: list[str], verb: flags.Flags) -> None:
    try:
        parts = flags.split(argv, verb)
    except UsageError:
        return
    assert [word for part in parts for word in part.tokens] == argv


@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_words_parse_or_are_a_usage_error_of_one_line(argv: list[str]) -> None:
    try:
        args.parse(argv, HOST)
    except UsageError as error:
        assert error.hint


@pytest.mark.parametrize(
    ("words", "became"),
    [
        (["-t", "images/o/r:1"], ["-t", f"{HOST}/images/o/r:1"]),
        (["-timages/o/r"], [f"-t{HOST}/images/o/r"]),
        (["-qt", "images/o/r"], ["-qt", f"{HOST}/images/o/r"]),
        (["--tag=images/o/r"], [f"--tag={HOST}/images/o/r"]),
        (["-t", "ghcr.io/images/r"], ["-t", "ghcr.io/images/r"]),
        (["-t", "imagesque/r"], ["-t", "imagesque/r"]),
    ],
)
def test_an_images_tag_stands_in_mayflys_registry_and_others_are_left_alone(
    words: list[str], became: list[str]
) -> None:
    assert list(args.parse([*words, "."], HOST).buildx) == [*became, "."]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "context is missing"),
        ([""], "context is missing"),
        (["a", "b"], "one build context"),
        (["--no-such", "."], "unknown flag --no-such"),
        (["-z", "."], "unknown flag -z"),
        (["-qz", "."], "unknown flag -z"),
        ([".", "--tag"], "--tag needs a value"),
        ([".", "-f"], "-f needs a value"),
        (["--mayfly-colour", "red", "."], "--mayfly-colour is no option"),
        (["--builder", "x", "."], "--builder cannot be chosen"),
        (["--builder=x", "."], "--builder cannot be chosen"),
        (["--allow", "security.insecure", "."], "security.insecure is refused"),
        (["--allow=network.host", "."], "network.host is refused"),
        (["--network", "host", "."], "--network host is refused"),
        (["--load", "."], "no Docker daemon"),
        (["-o", "type=docker", "."], "no Docker daemon"),
        (["--push", "."], "needs a name"),
        (["-t", "UPPER", "."], "no image name"),
        (["-t", "images/", "."], "no image name"),
        (["--progress", "fancy", "."], "'fancy' is unknown"),
        (["--mayfly-cache-key", "A/b", "."], "cannot be part of"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        args.parse(words, HOST)
    assert says in caught.value.message
    assert caught.value.hint


def test_build_arguments_by_name_alone_are_the_environments() -> None:
    """Proxies among them are what the user's environment says, and not what buildx's own says,
    which leads to tokens (`broker.py`).
    """
    words = ["--build-arg", "BASE", "--build-arg=HTTP_PROXY", "--build-arg", "no_proxy=x", "."]
    found = args.parse([*words, "--build-arg", "ABSENT"], HOST, {"BASE": "busybox", "OTHER": "x"})
    assert found.targets[0].build_args == {"BASE": "busybox", "no_proxy": "x"}
    assert found.proxies == ("HTTP_PROXY",)
    assert found.buildx == (
        *("--build-arg", "BASE", "--build-arg", "no_proxy=x", ".", "--build-arg", "ABSENT"),
    )


@pytest.mark.parametrize(
    ("words", "minutes"),
    [
        ([""], args.KEEP_MIN),
        (["=20"], 20),
        (["", "=false"], 0),
        (["=false", ""], args.KEEP_MIN),
        (["=false", "=3"], 3),
    ],
)
def test_of_several_words_about_keeping_the_last_counts(words: list[str], minutes: float) -> None:
    given = [f"--mayfly-keep-on-failure{word}" for word in words]
    assert args.parse([*given, "."], HOST).keep_min == minutes


def test_load_without_docker_names_the_file_to_write_and_with_docker_is_fine() -> None:
    with pytest.raises(UsageError, match="type=oci,dest="):
        args.parse(["--load", "."], HOST)
    assert args.parse(["--load", "."], HOST, docker=True).kept
    assert args.parse(["-o", "type=docker,dest=x.tar", "."], HOST).kept


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["."], False),
        (["--push=false", "."], False),
        (["-t", "images/a/b", "--push", "--push=false", "."], False),
        (["-t", "images/a/b", "--push=false", "--push", "."], True),
        (["-o", "out", "."], True),
        (["-t", "images/a/b", "."], False),
        (["-t", "images/a/b", "--push", "."], True),
        (["--check", "."], True),
        (["--call=outline", "."], True),
    ],
)
def test_whether_the_result_leaves_the_cache(words: list[str], kept: bool) -> None:
    assert args.parse(words, HOST).kept is kept


@pytest.mark.parametrize(
    ("output", "stdout"),
    [
        ("-", True),
        ("type=tar", True),
        ("type=tar,dest=-", True),
        ("type=oci", True),
        ("type=docker,dest=-", True),
        ("type=tar,dest=x.tar", False),
        ("type=oci,dest=x.tar", False),
        ("type=local,dest=out", False),
        ("type=registry", False),
        ("out", False),
    ],
)
def test_whether_the_result_goes_to_standard_output(output: str, stdout: bool) -> None:
    asked = args.parse(["-o", output, "-t", "images/x", "."], HOST, docker=True)
    assert asked.stdout is stdout
    assert not args.parse(["."], HOST).stdout


@pytest.mark.parametrize(
    ("context", "remote"),
    [
        (".", False),
        ("-", False),
        ("dir/github.com", False),
        ("https://github.com/o/r.git#main:sub", True),
        ("git@github.com:o/r.git", True),
        ("github.com/o/r", True),
        ("ssh://git@host/o/r", True),
    ],
)
def test_which_contexts_buildkit_fetches_itself(context: str, remote: bool) -> None:
    assert args.parse([context], HOST).remote is remote


@pytest.mark.parametrize("push", [True, False])
def test_the_registries_that_a_build_pulls_from_and_pushes_to_are_found(push: bool) -> None:
    parsed = args.parse(
        [
            *(["--push"] if push else []),
            *("-t", "ghcr.io/a/b:1", "-t", "plain", "--cache-from", "quay.io/c/d"),
            *("--cache-to", "type=registry,ref=localhost:5001/e", "."),
            *("-o", 'type=image,"name=x.io/f,y.io/g"'),
            *("--build-context", "base=docker-image://z.io/base"),
        ],
        HOST,
    )
    assert {host_of(name) for name in parsed.reads} == {"quay.io", "z.io"}
    pushed = {"localhost:5001"} | ({"ghcr.io", "docker.io", "x.io", "y.io"} if push else set())
    assert {host_of(name) for name in parsed.writes} == pushed


@pytest.mark.parametrize("verb", [flags.BUILD, flags.BAKE], ids=lambda verb: verb.verb)
def test_the_table_of_flags_is_that_of_the_buildx_we_ship(verb: flags.Flags) -> None:
    try:
        program = tools.tools_dir() / "buildx"
    except MachineUnfit:
        pytest.skip("the tools are not built")
    text = subprocess.run(
        [program, verb.verb, "--help"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^  (?:-(\w), |    )--([\w-]+) ?(\w*)", text, re.MULTILINE)
    assert len(found) > 15
    for short, name, kind in found:
        if short:
            assert verb.short[short] == name
        assert name in (verb.valued if kind else verb.switches), f"--{name} {kind}"
