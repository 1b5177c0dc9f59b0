"""Fixtures with real servers; tests/conftest.py hands them to all tests.

Stores start when first asked for, once for all workers of a run, and end with it. What they need
and `make setup` could not install skips a test, except in CI, where it fails.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from tests.servers import ceph, faultproxy, nginx, process, swift
from tests.servers.faults import Rule
from tests.servers.s3 import Bucket, S3Server, no_aws

Server = TypeVar("Server")


class WebServers(Protocol):
    def __call__(
        self, folder: Path, *, tls: bool = False, bytes_per_s: int | None = None
    ) -> nginx.WebServer: ...


class FaultProxies(Protocol):
    def __call__(self, upstream: str, *rules: Rule) -> faultproxy.FaultProxy: ...


@contextlib.contextmanager
def or_skip() -> Iterator[None]:
    """Skip the test that needs a server which is not installed, except in CI."""
    try:
        yield
    except process.ServerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def _of_this_run(factory: pytest.TempPathFactory, start: Callable[[Path, int], Server]) -> Server:
    """A store for the whole run: under xdist all workers are children of one process."""
    worker = "PYTEST_XDIST_WORKER" in os.environ
    folder = factory.getbasetemp()
    with or_skip():
        return start(folder.parent if worker else folder, os.getppid() if worker else os.getpid())


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    """Swift; tests share it, so each makes buckets of its own."""
    return _of_this_run(tmp_path_factory, swift.shared)


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> ceph.CephServer:
    """A Ceph gateway without STS: it names the reasons of a refusal as AWS does."""
    return _of_this_run(tmp_path_factory, ceph.shared)


@pytest.fixture(scope="session")
def ceph_sts_server(tmp_path_factory: pytest.TempPathFactory) -> ceph.CephServer:
    """A Ceph gateway that gives credentials which expire: `assume_role`."""

    def start(folder: Path, watch: int) -> ceph.CephServer:
        return ceph.shared(folder, watch, sts=True)

    return _of_this_run(tmp_path_factory, start)


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> Bucket:
    """A new bucket in Swift, with a boto3 client."""
    return s3_server.bucket()


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Swift as the store that AWS_* of the environment tell of, and nothing else of AWS in it."""
    s3_server.set_environment(monkeypatch)
    return s3_server


@pytest.fixture
def no_aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, no region, no endpoint to be found anywhere."""
    no_aws(monkeypatch)


@pytest.fixture
def web_server() -> Iterator[WebServers]:
    """A function that serves a folder by nginx until the end of the test."""
    with contextlib.ExitStack() as servers:

        def serve(
            folder: Path, *, tls: bool = False, bytes_per_s: int | None = None
        ) -> nginx.WebServer:
            with or_skip():
                return servers.enter_context(
                    nginx.running(folder, tls=tls, bytes_per_s=bytes_per_s)
                )

        yield serve


@pytest.fixture
def fault_proxy() -> Iterator[FaultProxies]:
    """A function that puts a fault proxy before http://HOST:PORT until the end of the test."""
    with contextlib.ExitStack() as proxies:

        def start(upstream: str, *rules: Rule) -> faultproxy.FaultProxy:
            return proxies.enter_context(faultproxy.running(upstream, *rules))

        yield start
