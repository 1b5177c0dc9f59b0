"""An S3 store for tests: where it is, and what may be done with it."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A store on 127.0.0.1 and the keys of one of its users; `session_token` where they expire."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str
    session_token: str | None = field(default=None, repr=False)

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments of boto3.client: nothing is taken from the environment."""
        from botocore.config import Config

        return {
            "endpoint_url": self.endpoint,
            "region_name": self.region,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "aws_session_token": self.session_token,
            "config": Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 2},
                connect_timeout=5,
                read_timeout=30,
            ),
        }

    def client(self, service: str = "s3") -> Any:
        """A boto3 client."""
        import boto3

        return boto3.session.Session().client(service, **self.client_options())

    def bucket(self) -> Bucket:
        """A new, empty bucket with a name that no process uses twice."""
        name = f"tarpon-{os.getpid()}-{next(_numbers)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        return Bucket(server=self, name=name, client=client)

    def set_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make this store the one of the environment, and of nothing else: see `no_aws`."""
        no_aws(monkeypatch)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", self.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", self.secret_key)
        monkeypatch.setenv("AWS_DEFAULT_REGION", self.region)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", self.endpoint)
        if self.session_token:
            monkeypatch.setenv("AWS_SESSION_TOKEN", self.session_token)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One bucket, with a boto3 client of its owner."""

    server: S3Server
    name: str
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, body: bytes) -> str:
        """Store an object; its ETag, quotes and all."""
        return str(self.client.put_object(Bucket=self.name, Key=key, Body=body)["ETag"])

    def get(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body


def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of AWS in the environment, no configuration files, no metadata service."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("BOTO_CONFIG", os.devnull)
