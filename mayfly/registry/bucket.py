"""The bucket: made when it is not there, and proven writable before anything relies on it.

`python -m mayfly.registry.bucket` does so for the bucket of the configuration, so that what S3
answers is read by a process without privileges.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import boto3
import botocore.config
from botocore.exceptions import BotoCoreError, ClientError

from mayfly.config import S3, load
from mayfly.errors import ConfigError, InfrastructureError, MayflyError, Unreachable

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PROBE = "mayfly-probe"
"""An object that is written and removed again."""

_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403"}


def client(s3: S3, *, timeout_s: float = 10) -> S3Client:
    """A boto3 client for `s3`: path style, two attempts, nothing taken from the environment."""
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=s3.region,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        config=botocore.config.Config(
            connect_timeout=timeout_s,
            read_timeout=timeout_s,
            retries={"total_max_attempts": 2},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def ensure(s3: S3, *, timeout_s: float = 10) -> None:
    """Make the bucket unless it is there, and write, read and remove one small object in it.

    Raises `ConfigError` (credentials refused, or not allowed to do this, or an endpoint that is no
    URL), `Unreachable` (no answer in `timeout_s` an attempt), `InfrastructureError` (the rest).
    """
    where = f"bucket {s3.bucket!r} at {s3.endpoint}"
    try:
        connection = client(s3, timeout_s=timeout_s)
        try:
            connection.head_bucket(Bucket=s3.bucket)
        except ClientError as error:
            if _code(error) not in {"404", "NoSuchBucket"}:
                raise
            _create(connection, s3)
        connection.put_object(Bucket=s3.bucket, Key=PROBE, Body=b"mayfly")
        connection.get_object(Bucket=s3.bucket, Key=PROBE)["Body"].read()
        connection.delete_object(Bucket=s3.bucket, Key=PROBE)
    except ClientError as error:
        if _code(error) in _CREDENTIALS:
            raise ConfigError(
                [
                    f"s3.access_key, s3.secret_key: {where} refuses them ({_code(error)}) - "
                    "check them, and that they may create, read and write this bucket"
                ]
            ) from None
        raise InfrastructureError(f"{where}: {error}") from None
    except ValueError as error:
        raise ConfigError([f"s3.endpoint = {s3.endpoint!r}: {error}"]) from None
    except BotoCoreError as error:
        raise Unreachable(
            f"{where} does not answer: {error}", hint="check s3.endpoint and that it is up"
        ) from None


def _create(connection: S3Client, s3: S3) -> None:
    try:
        if s3.region == "us-east-1":  # where naming the region is an error
            connection.create_bucket(Bucket=s3.bucket)
        else:
            connection.create_bucket(
                Bucket=s3.bucket,
                CreateBucketConfiguration={"LocationConstraint": s3.region},  # type: ignore[typeddict-item]
            )
    except ClientError as error:
        if _code(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            raise


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def main() -> int:
    """One line on stderr and the error's exit status when the bucket cannot be used."""
    try:
        ensure(load().s3)
    except MayflyError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
