"""The configuration: one place for each option, every fault at once, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.config import Config, load, reference
from mayfly.errors import ConfigError
from mayfly.model import GIB


def write(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "mayfly.toml"
    path.write_text(text)
    return {"MAYFLY_CONFIG": str(path)}


def test_no_configuration_is_fine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mayfly.config.DEFAULT_FILE", tmp_path / "absent.toml")
    config = load({})
    assert config.registry_host == "registry.mayfly.internal:5000"
    assert [s.name for s in config.sizes] == ["small", "medium", "large", "xlarge"]
    assert config.sizes[0].memory_bytes == 4 * GIB


def test_every_fault_is_reported_at_once_with_its_place(tmp_path: Path) -> None:
    environ = write(
        tmp_path,
        """
        colour = "red"
        [server]
        listen = "nowhere"
        [lease]
        budget_min = -1
        [ladder.t1]
        cpu = 1
        memory_gb = "much"
        disk_gb = 4
        """,
    )
    environ["MAYFLY_VM__ACCELERATOR"] = "warp"
    with pytest.raises(ConfigError) as caught:
        load(environ)
    faults = caught.value.faults
    assert len(faults) == 5
    for words in (
        ("mayfly.toml", "colour", "unknown option"),
        ("mayfly.toml", "server.listen", "ADDRESS:PORT"),
        ("mayfly.toml", "lease.budget_min", "greater than 0"),
        ("mayfly.toml", "ladder.t1.memory_gb", "integer"),
        ("MAYFLY_VM__ACCELERATOR", "vm.accelerator", "'tcg'"),
    ):
        assert any(all(w in fault for w in words) for fault in faults), (words, faults)
    assert all("\n" not in fault for fault in faults)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('untrusted_size = "huge"', "'huge' is no size of the ladder: choose one of small, medium"),
        ('events = ["pull_request"]', "trust.events.0"),
        ("untrusted_budget_min = 0", "trust.untrusted_budget_min"),
        ("ticket_max_age_h = 1000", "trust.ticket_max_age_h"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, f"[trust]\n{text}"))
    (fault,) = caught.value.faults
    assert fault.startswith(str(tmp_path / "mayfly.toml"))
    assert said in fault


def test_the_largest_size_of_what_is_not_trusted(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")).untrusted_size.name == "medium"
    named = load(write(tmp_path, '[trust]\nuntrusted_size = "large"'))
    assert named.untrusted_size.name == "large"
    one = load(write(tmp_path, "[ladder.t1]\ncpu = 1\nmemory_gb = 1\ndisk_gb = 4"))
    assert one.untrusted_size.name == "t1"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environ = write(tmp_path, 'state = "/a"\n[lease]\nbudget_min = 5\n')
    environ |= {
        "MAYFLY_LEASE__BUDGET_MIN": "7",
        "MAYFLY_STATE": "/b",
        "MAYFLY_S3__BUCKET": "builds",
    }
    config = load(environ)
    assert (config.lease.budget_min, config.state, config.s3.bucket) == (7, Path("/b"), "builds")


@pytest.mark.parametrize("text", ["12345678", "true", "1e5", "1979-05-27", "[1]", "a b", '"12"'])
def test_a_password_may_look_like_anything(tmp_path: Path, text: str) -> None:
    config = load(write(tmp_path, "") | {"MAYFLY_METRICS__PASSWORD": text})
    assert config.metrics.password == text.strip('"')


def test_no_fault_shows_a_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "[metrics]\npassword = 12345678\n[lease]\nbudget_min = -7\n"))
    said = str(caught.value)
    assert "metrics.password: input should be a valid string" in said and "-7" in said
    assert "12345678" not in said


@pytest.mark.parametrize("text", ["= 1", "a = [", "\x00", "x = 1\nx = 2"])
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        load(write(tmp_path, text))


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load({"MAYFLY_CONFIG": str(tmp_path / "none.toml")})
    with pytest.raises(ConfigError, match="cannot be read"):
        load({"MAYFLY_CONFIG": str(tmp_path)})


def test_paths_do_not_depend_on_where_a_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(write(tmp_path, 'state = "a"') | {"MAYFLY_CACHE": "b/c"})
    assert (config.state, config.cache) == (tmp_path / "a", tmp_path / "b" / "c")


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ('subnet = "fd00::/64"', "network.subnet", "IPv4 network"),
        ('subnet = "10.0.0.1/8"', "network.subnet", "has host bits set"),
        ('allow = ["10.0.0.0/8", "fe80::/10"]', "network.allow.1", "IPv4 network"),
        ('resolvers = ["2001:db8::53"]', "network.resolvers.0", "IPv4 address"),
        ('resolvers = ["dns.example"]', "network.resolvers.0", "does not appear"),
    ],
)
def test_networks_are_ipv4(tmp_path: Path, text: str, where: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, f"[network]\n{text}"))
    (fault,) = caught.value.faults
    assert fault.startswith(f"{tmp_path / 'mayfly.toml'}: {where} = ")
    assert why in fault


def test_a_lost_heartbeat_is_no_lost_client(tmp_path: Path) -> None:
    file = write(tmp_path, "[lease]\nheartbeat_s = 3\ngrace_s = 5\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.faults == (
        f"{tmp_path / 'mayfly.toml'}: lease.grace_s = 5: "
        "must be at least twice lease.heartbeat_s, which is 3",
    )
    assert load(file | {"MAYFLY_LEASE__GRACE_S": "6"}).lease.grace_s == 6
    with pytest.raises(ConfigError) as caught:
        load({"MAYFLY_LEASE__HEARTBEAT_S": "20"})
    (fault,) = caught.value.faults
    assert fault.startswith("MAYFLY_LEASE__HEARTBEAT_S: lease.grace_s = 30"), "its default"


@given(
    st.dictionaries(
        st.sampled_from(
            ["MAYFLY_VM__QEMU", "MAYFLY_POOL__RESERVE_GB", "MAYFLY_X__Y", "MAYFLY_S3__A"]
        ),
        st.text(st.characters(exclude_characters="\x00"), max_size=20),
    )
)
def test_any_environment_gives_a_configuration_or_a_list_of_faults(environ: dict[str, str]) -> None:
    try:
        assert isinstance(load(environ), Config)
    except ConfigError as error:
        assert error.faults


def test_the_reference_is_what_the_code_says() -> None:
    written = Path(__file__).parent.parent / "docs/configuration.md"
    assert written.read_text() == reference(), (
        "run: python -m mayfly.config > docs/configuration.md"
    )
