"""Settings as Woodpecker writes them, in each of the forms that one setting may come in."""

from __future__ import annotations

import json

import pytest

from mayfly.launcher.settings import BY_NAME, TABLE, Use
from mayfly.launcher.values import Given, Login, given, secret_places, variables


def of(**settings: str) -> Given:
    return given({f"PLUGIN_{name.upper()}": value for name, value in settings.items()})


@pytest.mark.parametrize("text", ["a,b", '["a", "b"]', "a\nb", " a , b ", '["a","b",""]'])
def test_a_list_is_one_however_it_is_written(text: str) -> None:
    assert of(tags=text).words("tags") == ("a", "b")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"A":"1","B":true}', (("A", "1"), ("B", "true"))),
        ("A=1,B=true", (("A", "1"), ("B", "true"))),
        ('["A=1","B=true"]', (("A", "1"), ("B", "true"))),
        ('[{"A":1},{"B":true}]', (("A", "1"), ("B", "true"))),
        ("A=1\nB=true", (("A", "1"), ("B", "true"))),
        (r"A=1\,2,B", (("A", "1,2"), ("B", None))),
        ('{"A":"x=y,z"}', (("A", "x=y,z"),)),
    ],
)
def test_pairs_are_what_they_are_however_they_are_written(
    text: str, wanted: tuple[tuple[str, str | None], ...]
) -> None:
    assert of(build_args=text).pairs("build_args") == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("type=registry,ref=a/b,mode=max", ("type=registry,ref=a/b,mode=max",)),
        ("type=registry,ref=a,type=local,src=x", ("type=registry,ref=a", "type=local,src=x")),
        ("type=registry,ref=a,acme/app", ("type=registry,ref=a", "acme/app")),
        ("acme/app,acme/base:1", ("acme/app", "acme/base:1")),
        ('["type=local,src=x","acme/app"]', ("type=local,src=x", "acme/app")),
        ('{"type":"registry","ref":"a"}', ("type=registry,ref=a",)),
        (r"type=registry\,ref=a", ("type=registry,ref=a",)),
        ("dest=image.tar,type=oci", ("dest=image.tar,type=oci",)),
        ("dest=a,type=oci,dest=b,type=tar", ("dest=a,type=oci", "dest=b,type=tar")),
        ("type=local,dest=a\ntype=local,dest=b", ("type=local,dest=a", "type=local,dest=b")),
    ],
)
def test_entries_begin_at_their_type(text: str, wanted: tuple[str, ...]) -> None:
    assert of(cache_from=text).words("cache_from") == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("default", ("default",)),
        ("github=gh.key,gitlab=gl.key", ("github=gh.key", "gitlab=gl.key")),
        ("default=a.key,b.key", ("default=a.key,b.key",)),
        ("github=gh.key,default", ("github=gh.key", "default")),
        ('["github=a,b","default"]', ("github=a,b", "default")),
    ],
)
def test_ssh_keys_of_one_id_stay_together(text: str, wanted: tuple[str, ...]) -> None:
    assert of(ssh=text).words("ssh") == wanted


@pytest.mark.parametrize(
    "text",
    [
        "hush",
        "hush=hush",
        "src=hush",
        "id=,src=hush",
        "id=a,src=f,hush",
        '["hush"]',
        '["hush", {"a": "b"}]',
        '["id=a\\nsrc=hush"]',
        '{"id": "a", "src": "f\\nhush"}',
        "-----BEGIN KEY-----\nhush\n-----END KEY-----",
    ],
)
def test_what_may_be_a_secret_itself_is_a_fault_that_does_not_show_it(text: str) -> None:
    found = of(secrets=text)
    assert "secrets" not in found.values
    assert len(found.faults) == 1 and found.faults[0].startswith("secrets: ")
    assert "hush" not in found.faults[0]


@pytest.mark.parametrize(
    ("entry", "places"),
    [
        ("id=a,src=f", ("", "f")),
        ("src=f,id=a", ("", "f")),
        ("type=file,id=a,source=f", ("", "f")),
        ("id=a,env=V", ("V", "")),
        ("type=env,id=a,src=V", ("V", "")),
        ("id=a", ("a", "a")),
        ("type=file,id=a", ("a", "a")),
    ],
)
def test_a_secret_is_where_buildx_looks_for_it(entry: str, places: tuple[str, str]) -> None:
    for text in (entry, json.dumps([entry])):
        assert of(secrets=text).pairs("secrets") == ((entry, None),)
    assert secret_places(entry) == places


def test_secrets_are_values_or_where_they_are() -> None:
    assert of(secrets='{"npm":"hush"}').pairs("secrets") == (("npm", "hush"),)
    assert of(secrets="id=a,src=f,id=b,env=B").pairs("secrets") == (
        ("id=a,src=f", None),
        ("id=b,env=B", None),
    )
    assert of(secrets='[{"id":"a","src":"f"}]').pairs("secrets") == (("id=a,src=f", None),)
    assert of(secrets='["id=a", {"npm":"hush"}]').pairs("secrets") == (
        ("id=a", None),
        ("npm", "hush"),
    )
    for values in ({"id": "hush"}, {"id": "hush", "token": "hush-too"}):  # no place of a secret
        assert of(secrets=json.dumps(values)).pairs("secrets") == tuple(values.items())


def test_logins_of_several_registries() -> None:
    text = json.dumps([{"registry": "https://r.io", "username": "u", "password": "p,w"}])
    assert of(logins=text).logins() == (Login("https://r.io", "u", "p,w"),)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"dry_run": "perhaps"}, "dry_run: 'perhaps' is neither true nor false"),
        ({"cpu": "2.5"}, "cpu: '2.5' is no whole number"),
        ({"memory_gb": "much"}, "memory_gb: 'much' is no number"),
        ({"memory_gb": "inf"}, "memory_gb: 'inf' is no number"),
        ({"tags": '["a"'}, "tags: begins like JSON and is none"),
        ({"tags": '{"a":1}'}, "tags: is a map - write a list"),
        ({"repos": "a"}, "repos: there is no such setting - do you mean repo?"),
        ({"xyzzy": "a"}, "xyzzy: there is no such setting"),
        ({"tag": "a", "tags": "b"}, "tags: given twice, as tags and tag"),
        (
            {"build_args": "A=1,b c"},
            "build_args: a part of it is no NAME=VALUE - write a map, or `\\,` for a comma "
            "in a value",
        ),
        ({"logins": "me:hush"}, "logins: is no list of maps with registry, username and password"),
        ({"logins": '[{"registry":"r.io"}]'}, "logins: entry 1 has no password and no username"),
        ({"logins": '[{"registri":"r"}]'}, "logins: entry 1: there is no field 'registri' in"),
        ({"insecure": "true"}, "insecure: refused - registries are spoken to by TLS"),
        ({"aws_access_key_id": "AKIA"}, "aws_access_key_id: refused - log in with"),
    ],
)
def test_one_clear_line_for_what_is_wrong(settings: dict[str, str], fault: str) -> None:
    (found,) = of(**settings).faults
    assert found.startswith(fault)


def test_what_has_no_effect_is_said_and_what_changes_nothing_is_not() -> None:
    (remark,) = of(mirror="https://m.example", insecure="false", ipv6="false").remarks
    assert remark.startswith("setting mirror has no effect: ")
    assert of(mirror="https://m.example", insecure="false").faults == ()


def test_an_empty_setting_is_not_set() -> None:
    found = of(repo="", tags=" ", cpu="")
    assert (found.faults, found.values) == ((), {})


def test_a_variable_that_a_setting_names_is_no_setting() -> None:
    settings = {"secrets": "id=t,env=PLUGIN_MY_TOKEN", "my_token": "hush"}
    found = of(**settings, build_args_from_env="PLUGIN_BUILD_NO", build_no="7")
    assert found.faults == ()
    assert found.named == {"PLUGIN_MY_TOKEN": "hush", "PLUGIN_BUILD_NO": "7"}


def test_what_is_secret_is_in_no_fault_and_no_repr() -> None:
    found = of(logins='[{"registry":"r","password":"hush"}]', password="hush", build_args="x,hu sh")
    assert len(found.faults) == 2
    assert "hush" not in "".join(found.faults) and "hu sh" not in "".join(found.faults)
    assert "hush" not in repr(Login("r", "u", "hush"))


def test_the_farms_own_variables_count_where_settings_are_absent() -> None:
    found = given({"MAYFLY_URL": "https://farm", "PLUGIN_TOKEN": "mine", "MAYFLY_TOKEN": "theirs"})
    assert (found.text("url"), found.text("token")) == ("https://farm", "mine")


def test_names_are_unique() -> None:
    assert len(BY_NAME) == sum(len(setting.names) for setting in TABLE.values())
    assert all(s.doc and not s.doc.endswith(".") for s in TABLE.values() if s.use is Use.USED)


def test_a_file_of_variables() -> None:
    text = "# c\nexport PLUGIN_REPO='images/a/b'\nX = 1\nno\n=2\nPLUGIN_TAGS=\"a b\"\n"
    assert variables(text) == {"PLUGIN_REPO": "images/a/b", "X": "1", "PLUGIN_TAGS": "a b"}
