"""What every test may ask for: the real servers of tests/servers."""

from __future__ import annotations

from tests.servers.fixtures import (
    ceph_server,
    ceph_sts_server,
    fault_proxy,
    no_aws_environment,
    s3_bucket,
    s3_environment,
    s3_server,
    web_server,
)

__all__ = [
    "ceph_server",
    "ceph_sts_server",
    "fault_proxy",
    "no_aws_environment",
    "s3_bucket",
    "s3_environment",
    "s3_server",
    "web_server",
]
