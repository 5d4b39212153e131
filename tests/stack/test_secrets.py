"""Secrets are made once, each readable by the one user that needs it."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from mayfly import users
from mayfly.config import Config
from mayfly.stack import secrets
from mayfly.stack.certificates import RENEW_DAYS, SERVER_DAYS

NOW = datetime(2026, 11, 24, tzinfo=UTC)

OWNERS = {
    "admin.token": (0, 0o600),
    "admin.auth.json": (0, 0o600),
    "ca/ca.key": (0, 0o600),
    "ca/ca.crt": (0, 0o644),
    "ca/edge.key": (users.EDGE, 0o600),
    "ca/edge.crt": (0, 0o644),
    "ca/builders.key": (users.BUILDERS, 0o600),
    "ca/builders.crt": (0, 0o644),
    "trust/ca.crt": (0, 0o644),
    "keys/lease.key": (users.ORCHESTRATOR, 0o600),
    "keys/lease.pub": (0, 0o644),
    "keys/gateway.key": (users.EDGE, 0o600),
    "keys/gateway.jwks": (0, 0o644),
    "keys/gateway.pub": (0, 0o644),
    "keys/admin.sha256": (users.ORCHESTRATOR, 0o600),
    "keys/builders.token": (users.BUILDERS, 0o600),
    "keys/builders.sha256": (users.ORCHESTRATOR, 0o600),
    "registry/http.secret": (users.REGISTRY, 0o600),
}


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    config = Config(state=tmp_path / "state")
    users.make_folders(config.state)
    secrets.ensure(config, NOW)
    yield config


def files(state: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(state)): path.read_bytes()
        for path in sorted(state.rglob("*"))
        if path.is_file()
    }


def certificate(config: Config) -> x509.Certificate:
    return x509.load_pem_x509_certificate((config.state / "ca" / "edge.crt").read_bytes())


def test_everything_is_made_and_nothing_else(config: Config) -> None:
    assert set(files(config.state)) == set(OWNERS)


@pytest.mark.parametrize("name", OWNERS)
def test_owner_and_mode_are_right_and_set_right_again(config: Config, name: str) -> None:
    path = config.state / name
    path.chmod(0o666)
    secrets.ensure(config, NOW)
    status = path.stat()
    owner, mode = OWNERS[name]
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (owner, owner, mode)


def test_a_second_time_changes_nothing(config: Config) -> None:
    before = files(config.state)
    secrets.ensure(config, NOW + timedelta(days=3))
    assert files(config.state) == before


@pytest.mark.parametrize("name", sorted(set(OWNERS) - {"ca/ca.key"}))
def test_what_is_missing_is_made_and_the_rest_kept(config: Config, name: str) -> None:
    before = files(config.state)
    (config.state / name).unlink()
    secrets.ensure(config, NOW)
    after = files(config.state)
    assert set(after) == set(OWNERS)
    for kept in ("keys/lease.key", "keys/gateway.key", "admin.token", "ca/ca.key"):
        assert after[kept] == before[kept] or kept == name


@pytest.mark.parametrize("name", ["keys/lease.key", "ca/ca.key", "ca/ca.crt", "ca/edge.crt"])
def test_what_is_damaged_is_made_anew(config: Config, name: str) -> None:
    (config.state / name).write_text("garbage")
    secrets.ensure(config, NOW)
    trusts(config)


def trusts(config: Config) -> None:
    subprocess.run(
        ["openssl", "verify", "-x509_strict", "-attime", str(int(NOW.timestamp())), "-CAfile",
         config.state / "trust" / "ca.crt", "-verify_hostname", config.server.name,
         config.state / "ca" / "edge.crt"],
        check=True,
    )  # fmt: skip


def test_openssl_trusts_the_edge_by_its_names(config: Config) -> None:
    trusts(config)
    names = certificate(config).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == [config.server.name, "localhost"]


@pytest.mark.parametrize(
    "server",
    [{"name": "other.internal"}, {"listen": "10.1.2.3:5000"}, {"listen": "[2001:db8::1]:5000"}],
)
def test_other_names_make_another_certificate(config: Config, server: dict[str, str]) -> None:
    before = certificate(config)
    other = config.model_copy(update={"server": config.server.model_validate(server)})
    secrets.ensure(other, NOW)
    assert certificate(config) != before
    assert certificate(config).public_key() == before.public_key()
    trusts(other)


@pytest.mark.parametrize(("left_days", "renewed"), [(RENEW_DAYS + 1, False), (RENEW_DAYS, True)])
def test_the_certificate_is_renewed_before_it_ends(
    config: Config, left_days: int, renewed: bool
) -> None:
    before = certificate(config)
    secrets.ensure(config, NOW + timedelta(days=SERVER_DAYS - left_days))
    assert (certificate(config) != before) == renewed


def test_the_hash_is_the_tokens(config: Config) -> None:
    token = (config.state / "admin.token").read_text()
    assert token.startswith("mayfly_admin_")
    assert token.endswith("\n")
    stored = (config.state / "keys" / "admin.sha256").read_text().strip()
    assert stored == hashlib.sha256(token.strip().encode()).hexdigest()


def test_an_operators_own_token_is_kept_and_hashed(config: Config) -> None:
    (config.state / "admin.token").write_text("mine")
    secrets.ensure(config, NOW)
    stored = (config.state / "keys" / "admin.sha256").read_text().strip()
    assert stored == hashlib.sha256(b"mine").hexdigest()


def credentials(config: Config) -> dict[str, str]:
    """What the auth file says: `USER:PASSWORD` by registry."""
    auths = json.loads((config.state / "admin.auth.json").read_text())["auths"]
    return {host: base64.b64decode(entry["auth"]).decode() for host, entry in auths.items()}


def test_the_auth_file_follows_the_token_and_the_name(config: Config) -> None:
    token = (config.state / "admin.token").read_text().strip()
    assert credentials(config) == {config.registry_host: f"mayfly:{token}"}
    (config.state / "admin.token").write_text("mine")
    server = config.server.model_copy(update={"name": "other", "listen": "127.0.0.1:6000"})
    secrets.ensure(config.model_copy(update={"server": server}), NOW)
    assert credentials(config) == {"other:6000": "mayfly:mine"}


def test_a_key_that_is_a_link_is_not_followed(config: Config, tmp_path: Path) -> None:
    """A service may own a key, and has owned its folder: root reads no other file by it."""
    (tmp_path / "shadow").write_text("root's own")
    key = config.state / "registry" / "http.secret"
    key.unlink()
    key.symlink_to(tmp_path / "shadow")
    with pytest.raises(OSError, match=r"http\.secret"):
        secrets.ensure(config, NOW)
    assert key.is_symlink()
    assert (tmp_path / "shadow").stat().st_uid == 0
