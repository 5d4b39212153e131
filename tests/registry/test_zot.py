"""Whatever is configured, zot stores in S3, asks for our tokens and shares no blob by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.config import S3, Config
from mayfly.errors import ConfigError
from mayfly.registry import tokens, zot

GOOD = S3(endpoint="http://127.0.0.1:1", access_key="a", secret_key="s")
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


def read(s3: S3, config: Config | None = None) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(zot.text(zot.settings(config or Config(), s3)))
    return settings


@given(st.builds(S3, endpoint=text, access_key=text, secret_key=text, region=text,
                 bucket=st.text("ab-", min_size=3, max_size=9)))  # fmt: skip
def test_storage_is_s3_whatever_is_configured(s3: S3) -> None:
    storage = read(s3)["storage"]
    driver = storage["storageDriver"]
    assert (driver["name"], driver["bucket"], driver["secretkey"]) == (
        "s3",
        s3.bucket,
        s3.secret_key,
    )
    assert driver["rootdirectory"] == zot.ROOT
    assert not storage["dedupe"], "who knows a digest would get the blob, out of any repository"
    assert not storage["gc"], "images known by digest only would be gone"


def test_every_missing_field_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read(S3())
    assert len(caught.value.faults) == 3


def test_it_is_on_loopback_and_asks_for_our_tokens_and_lets_a_body_take_its_time() -> None:
    http = read(GOOD, Config.model_validate({"registry": {"port": 20001}}))["http"]
    assert (http["address"], http["port"]) == ("127.0.0.1", "20001")
    assert list(http["auth"]) == ["bearer"]
    assert (http["readTimeout"], http["writeTimeout"]) == ("0s", "0s")


@pytest.mark.real
def test_zot_itself_finds_the_configuration_good(tmp_path: Path) -> None:
    program = shutil.which("zot")
    assert program, "put zot on PATH"
    config = Config.model_validate({"state": tmp_path / "state", "registry": {"port": 20001}})
    zot.key(config).parent.mkdir(parents=True)
    zot.key(config).write_bytes(tokens.public(tokens.generate()))
    settings = read(GOOD, config)

    def verdict() -> int:
        (tmp_path / "zot.json").write_text(json.dumps(settings))
        argv = [program, "verify", str(tmp_path / "zot.json")]
        return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode

    assert verdict() == 0
    settings["storage"]["unknown"] = 1
    assert verdict() != 0, "so that it says something that it finds it good"
