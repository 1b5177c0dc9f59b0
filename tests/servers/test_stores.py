"""The stores answer as stores do, and nothing of them outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.servers import nginx, process, swift
from tests.servers.ceph import CephServer
from tests.servers.fixtures import WebServers
from tests.servers.s3 import Bucket, S3Server


def status_and_code(ask: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        ask()
    response: Any = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def test_swift_keeps_objects_and_answers_ranges(s3_bucket: Bucket) -> None:
    body = bytes(range(256)) * 40
    etag = s3_bucket.put("a folder/photo+1.jpg", body)
    assert s3_bucket.get("a folder/photo+1.jpg") == body
    asked = {"Bucket": s3_bucket.name, "Key": "a folder/photo+1.jpg"}
    part = s3_bucket.client.get_object(**asked, Range="bytes=300-1299", IfMatch=etag)
    assert part["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert part["ContentRange"] == "bytes 300-1299/10240"
    assert part["Body"].read() == body[300:1300]
    other = '"0123456789abcdef0123456789abcdef"'
    refused = status_and_code(lambda: s3_bucket.client.get_object(**asked, IfMatch=other))
    assert refused == (412, "PreconditionFailed")


def test_swift_serves_presigned_urls_with_unsigned_ranges(s3_bucket: Bucket) -> None:
    s3_bucket.put("k", b"0123456789")
    url = s3_bucket.client.generate_presigned_url(
        "get_object", Params={"Bucket": s3_bucket.name, "Key": "k"}, ExpiresIn=60
    )
    asked = urllib.request.Request(url, headers={"Range": "bytes=2-4"})
    with urllib.request.urlopen(asked) as reply:
        assert (reply.status, reply.read()) == (206, b"234")


def test_swift_refuses_a_wrong_secret(s3_bucket: Bucket, s3_server: S3Server) -> None:
    options = s3_server.client_options() | {"aws_secret_access_key": "another"}
    import boto3

    client = boto3.client("s3", **options)
    refused = status_and_code(lambda: client.head_bucket(Bucket=s3_bucket.name))
    assert refused[0] == 403


def test_the_environment_leads_to_the_store(s3_environment: S3Server, s3_bucket: Bucket) -> None:
    import boto3

    s3_bucket.put("k", b"body")
    client = boto3.session.Session().client("s3")
    assert client.get_object(Bucket=s3_bucket.name, Key="k")["Body"].read() == b"body"
    assert {name for name in os.environ if name.startswith("AWS_")} == {
        "AWS_ACCESS_KEY_ID",
        "AWS_CONFIG_FILE",
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_ENDPOINT_URL_S3",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SHARED_CREDENTIALS_FILE",
    }


def test_secrets_are_not_shown(s3_server: S3Server, ceph_server: CephServer) -> None:
    assert s3_server.secret_key not in repr(s3_server)
    assert ceph_server.secret_key not in repr(ceph_server)


def test_ceph_names_the_reason_of_a_refusal(ceph_server: CephServer) -> None:
    import boto3

    bucket = ceph_server.bucket()
    bucket.put("k", b"body")
    assert bucket.get("k") == b"body"
    for change, code in (
        ({"aws_secret_access_key": "another"}, "SignatureDoesNotMatch"),
        ({"aws_access_key_id": "nobody"}, "InvalidAccessKeyId"),
    ):
        client = boto3.client("s3", **(ceph_server.client_options() | change))
        refused = status_and_code(lambda c=client: c.get_object(Bucket=bucket.name, Key="k"))
        assert refused == (403, code)


@pytest.mark.slow
def test_ceph_credentials_expire(ceph_sts_server: CephServer) -> None:
    bucket = ceph_sts_server.bucket()
    bucket.put("k", b"body")
    began = time.monotonic()
    client = ceph_sts_server.assume_role(duration_s=2).client()
    assert client.get_object(Bucket=bucket.name, Key="k")["Body"].read() == b"body"
    time.sleep(max(0, 3.2 - (time.monotonic() - began)))  # it counts whole seconds
    refused = status_and_code(lambda: client.get_object(Bucket=bucket.name, Key="k"))
    assert refused == (403, "AccessDenied")


def test_nginx_serves_ranges_and_knows_changed_files(
    web_server: WebServers, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    url = web_server(tmp_path).url + "/a.tar"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=2-4"})) as got:
        assert (got.status, got.read()) == (206, b"234")
        etag = got.headers["ETag"]
    (tmp_path / "a.tar").write_bytes(b"another length")
    again = urllib.request.Request(url, headers={"If-Match": etag})
    with pytest.raises(urllib.error.HTTPError, match="412"):
        urllib.request.urlopen(again)


def test_nginx_speaks_https_to_those_who_know_its_authority(
    web_server: WebServers, tmp_path: Path
) -> None:
    import ssl

    (tmp_path / "a").write_bytes(b"body")
    server = web_server(tmp_path, tls=True)
    context = ssl.create_default_context(cafile=server.authority)
    with urllib.request.urlopen(server.url + "/a", context=context) as got:
        assert got.read() == b"body"
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(server.url + "/a")


def test_nginx_can_be_slow(web_server: WebServers, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(900_000))
    url = web_server(tmp_path, bytes_per_s=600_000).url + "/a"
    began = time.monotonic()
    with urllib.request.urlopen(url) as got:
        assert len(got.read()) == 900_000
    assert time.monotonic() - began > 0.2  # the first second's bytes come at once


def gone(port: int, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while process.answers(port):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


LIVES_ON = """
import sys, time
from tests.servers import process
keeper, facts = process.launch(sys.argv[1], __import__("os").getpid(), {})
print(facts.get("endpoint") or facts["url"], process.ROOT, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", [swift.__name__, nginx.__name__])
def test_a_server_ends_with_a_test_that_is_killed(module: str, tmp_path: Path) -> None:
    test = subprocess.Popen(
        [sys.executable, "-c", LIVES_ON, module],
        cwd=process.ROOT,
        env=process.environment() | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert test.stdout is not None
    port = int(test.stdout.readline().split()[0].rpartition(":")[2])
    assert process.answers(port)
    assert [path.name for path in tmp_path.iterdir()], "the server's folder is below TMPDIR"
    test.kill()
    test.communicate()
    assert gone(port, within_s=10)
    until = time.monotonic() + 10
    while list(tmp_path.iterdir()):
        assert time.monotonic() < until, "the folder is still there"
        time.sleep(0.05)


@pytest.mark.slow
def test_daemons_end_with_a_keeper_that_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # nobody is left to remove the folder
    keeper, facts = process.launch(swift.__name__, os.getpid(), {})
    port = int(facts["endpoint"].rpartition(":")[2])
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait()
    assert gone(port, within_s=10)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    ends = pytest.raises(process.ServerError, match=r"nginx: ended with status 1 .*directive")
    with ends, nginx.running(tmp_path / 'no";such'):
        pass
    with pytest.raises(process.ServerError, match=r"radosgw-bis: not installed, .* run make it"):
        process.need(["sh", "radosgw-bis"], "make it")
