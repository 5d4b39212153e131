"""The bucket is made once; what is wrong with it is said in one line."""

from __future__ import annotations

import time

import pytest

from mayfly.errors import ConfigError, Unreachable
from mayfly.registry import bucket
from tests.stack_fixture import Stack, free_port

pytestmark = pytest.mark.services


def test_a_bucket_is_made_once_and_can_be_written(stack: Stack) -> None:
    s3 = stack.s3.model_copy(update={"bucket": "another-one"})
    bucket.ensure(s3)
    client = bucket.client(s3)
    client.put_object(Bucket="another-one", Key="kept", Body=b"x")
    bucket.ensure(s3)
    keys = [each["Key"] for each in client.list_objects_v2(Bucket="another-one")["Contents"]]
    assert keys == ["kept"]


@pytest.mark.parametrize("field", ["access_key", "secret_key"])
def test_wrong_credentials_are_named(stack: Stack, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}.*refuses them") as caught:
        bucket.ensure(stack.s3.model_copy(update={field: "wrong"}))
    assert "\n" not in str(caught.value)
    assert stack.s3.secret_key not in str(caught.value)


def test_a_service_that_is_not_there_is_said_to_be_so_soon(stack: Stack) -> None:
    s3 = stack.s3.model_copy(update={"endpoint": f"http://127.0.0.1:{free_port()}"})
    start = time.monotonic()
    with pytest.raises(Unreachable, match="does not answer"):
        bucket.ensure(s3, timeout_s=1)
    assert time.monotonic() - start < 10


def test_an_endpoint_that_is_no_url_is_the_configurations_fault(stack: Stack) -> None:
    with pytest.raises(ConfigError, match=r"s3\.endpoint"):
        bucket.ensure(stack.s3.model_copy(update={"endpoint": "not a url"}))
