"""Whatever is configured, distribution stores in S3, asks for our tokens and hands out no URLs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.config import S3, Config
from mayfly.errors import ConfigError
from mayfly.registry import distribution

GOOD = S3(endpoint="http://127.0.0.1:1", access_key="a", secret_key="s")
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


def read(s3: S3) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(
        distribution.text(distribution.settings(Config(), s3, "secret"))
    )
    return settings


@given(st.builds(S3, endpoint=text, access_key=text, secret_key=text, region=text,
                 bucket=st.text("ab-", min_size=3, max_size=9)))  # fmt: skip
def test_storage_is_s3_whatever_is_configured(s3: S3) -> None:
    settings = read(s3)
    drivers = set(settings["storage"]) - {"cache", "delete", "redirect"}
    assert drivers == {"s3"}
    found = settings["storage"]["s3"]
    assert (found["bucket"], found["secretkey"]) == (s3.bucket, s3.secret_key)
    assert found["chunksize"] >= 5 * 1024 * 1024


@pytest.mark.parametrize("field", ["endpoint", "access_key", "secret_key", "region"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(ConfigError, match=f"s3.{field}"):
        read(GOOD.model_copy(update={field: ""}))


def test_every_missing_field_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read(S3())
    assert len(caught.value.faults) == 3


def test_only_the_edge_can_make_it_do_anything() -> None:
    settings = read(GOOD)
    assert settings["http"]["net"] == "unix"
    assert settings["auth"]["token"]["signingalgorithms"] == ["ES256"]
    assert list(settings["auth"]) == ["token"]
    assert settings["storage"]["redirect"] == {"disable": True}
    assert "debug" not in settings["http"]


@pytest.mark.parametrize(("endpoint", "secure"), [("http://a", False), ("https://a", True)])
def test_tls_follows_the_endpoint(endpoint: str, secure: bool) -> None:
    s3 = GOOD.model_copy(update={"endpoint": endpoint})
    assert read(s3)["storage"]["s3"]["secure"] is secure
