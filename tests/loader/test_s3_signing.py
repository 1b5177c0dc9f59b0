"""Signed URLs: as botocore would sign them, good at real stores, and renewed in time."""

from __future__ import annotations

import calendar
import json
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import tarpon
from tarpon._presign import Keys, Place, Presigner
from tarpon._s3 import S3

from tests.servers.ceph import CephServer
from tests.servers.s3 import S3Server, no_aws

ODD = [
    *("sp ace+plus%20&=?#;.tar", "é日本.tar", "a//b.tar", "~'(!)*,:@=$.tar", '"<>|^`{}[]\\.tar'),
    *("./a.tar", "../b.tar", "/c.tar", ".", "trailing."),
]
Credentials = Callable[..., None]


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        body: bytes = answer.read()
        return body


def status(url: str) -> int:
    try:
        get(url)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def access_key(url: str) -> str:
    return parse_qs(urlsplit(url).query)["X-Amz-Credential"][0].split("/")[0]


def test_amazons_own_example() -> None:
    """Of the S3 API Reference, "Authenticating Requests: Using Query Parameters"."""
    base = "https://examplebucket.s3.amazonaws.com/"
    signer = Presigner(
        Place(base=base, host="examplebucket.s3.amazonaws.com", path="/", region="us-east-1"),
        Keys(
            access_key="AKIAIOSFODNN7EXAMPLE",
            secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        ),
        now_s=1369353600,
        lifetime_s=86400,
        requester_pays=False,
    )
    assert signer.url("test.txt").endswith(
        "X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


@pytest.mark.parametrize("token", [None, "to/ken+with=odd&signs"])
@pytest.mark.parametrize("key", ODD)
def test_signatures_are_botocores(key: str, token: str | None) -> None:
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import ReadOnlyCredentials

    place = Place(base="http://h:90/b/", host="h:90", path="/b/", region="eu-west-1")
    keys = Keys(access_key="AKID", secret_key="sec/ret", token=token)

    def ours(now_s: float) -> str:
        return Presigner(place, keys, now_s=now_s, lifetime_s=3600, requester_pays=True).url(key)

    bare, query = ours(0).split("?")
    assert "x-amz-request-payer=requester" in query
    request = AWSRequest("GET", bare, params={"x-amz-request-payer": "requester"})
    S3SigV4QueryAuth(
        ReadOnlyCredentials("AKID", "sec/ret", token), "s3", "eu-west-1", 3600
    ).add_auth(request)
    theirs = parse_qs(urlsplit(request.url).query)
    signed_at = time.strptime(theirs["X-Amz-Date"][0] + "+0000", "%Y%m%dT%H%M%SZ%z")
    assert parse_qs(urlsplit(ours(calendar.timegm(signed_at))).query) == theirs


@pytest.mark.parametrize("payer", [False, True])
@pytest.mark.parametrize("store", ["s3_server", "ceph_server"])
def test_odd_keys_at_real_stores(
    store: str, payer: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: S3Server = request.getfixturevalue(store)
    server.set_environment(monkeypatch)
    bucket = server.bucket()
    s3 = S3(tarpon.Store(requester_pays=payer))
    for key in ODD:
        bucket.put(key, key.encode())
        url, until = s3.sign(f"{bucket.url}/{key}")
        assert get(url) == key.encode()
        assert 3000 < until - time.time() <= 3600
    assert [item.url for item in s3.list(f"{bucket.url}/")] == sorted(
        f"{bucket.url}/{key}" for key in ODD
    )


def test_many_urls_are_signed_quickly(s3_environment: S3Server) -> None:
    """Ten times botocore's pace, at the least: an epoch over 10,000 shards starts with it."""
    s3 = S3(tarpon.Store())
    s3.sign("s3://bucket/0.tar")
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for number in range(1000):
            s3.sign(f"s3://bucket/photos/train-{number:06}.tar")
        best = min(best, time.process_time() - start)
    assert best < 0.1


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "https://bucket.s3.amazonaws.com/k"),
        ({"region": "eu-west-1"}, "https://bucket.s3.eu-west-1.amazonaws.com/k"),
        (
            {"addressing": "path", "region": "eu-west-1"},
            "https://s3.eu-west-1.amazonaws.com/bucket/k",
        ),
        ({"endpoint": "https://minio.example.org:9000"}, "https://minio.example.org:9000/bucket/k"),
        ({"endpoint": "http://10.0.0.7/"}, "http://10.0.0.7/bucket/k"),
        (
            {"endpoint": "https://example.org", "addressing": "virtual"},
            "https://bucket.example.org/k",
        ),
    ],
)
def test_where_buckets_are(
    options: dict[str, str], url: str, no_aws_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsigned = tarpon.Store(unsigned=True, **options)  # type: ignore[arg-type]
    assert S3(unsigned).sign("s3://bucket/k") == (url, float("inf"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    s3 = S3(tarpon.Store(**options))  # type: ignore[arg-type]
    signed = s3.sign("s3://bucket/k")[0]
    assert signed.split("?")[0] == url
    assert f"%2F{options.get('region', 'us-east-1')}%2F" in signed


def test_a_bucket_of_another_region(
    no_aws_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    s3 = S3(tarpon.Store())
    s3.sign("s3://bucket/k")
    s3.region_hint("s3://bucket/k", "eu-central-1")
    signed = s3.sign("s3://bucket/k")[0]
    assert signed.startswith("https://bucket.s3.eu-central-1.amazonaws.com/k?")
    assert "%2Feu-central-1%2F" in signed
    assert "%2Fus-east-1%2F" in s3.sign("s3://other/k")[0]


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Credentials:
    """A profile whose credential_process tells what `put` wrote last; each run adds to `runs`."""
    no_aws(monkeypatch)
    program = tmp_path / "credentials.py"
    program.write_text(
        "import pathlib, sys\n"
        "here = pathlib.Path(__file__).parent\n"
        "(here / 'runs').open('a').write('.')\n"
        "sys.stdout.write((here / 'credentials.json').read_text())\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    def put(key: str, secret: str = "s", token: str = "t", *, lives_s: float) -> None:
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + lives_s))
        found = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret}
        (tmp_path / "credentials.json").write_text(
            json.dumps(found | {"SessionToken": token, "Expiration": end})
        )

    return put


def test_urls_end_before_the_credentials(credentials: Credentials) -> None:
    credentials("FIRST", lives_s=1800)
    url, until = S3(tarpon.Store()).sign("s3://bucket/k")
    assert access_key(url) == "FIRST"
    assert 1600 < until - time.time() < 1790


def test_many_threads_renew_once(credentials: Credentials, tmp_path: Path) -> None:
    credentials("FIRST", lives_s=7200)
    s3 = S3(tarpon.Store())
    assert access_key(s3.sign("s3://bucket/k")[0]) == "FIRST"
    credentials("SECOND", lives_s=7200)
    assert access_key(s3.sign("s3://bucket/k")[0]) == "FIRST"
    start, seen = threading.Barrier(8), []

    def refused() -> None:
        start.wait()
        s3.renew()
        seen.append(access_key(s3.sign("s3://bucket/k")[0]))

    threads = [threading.Thread(target=refused) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["SECOND"] * 8
    assert (tmp_path / "runs").read_text() == ".."


def test_credentials_that_expire_at_a_real_store(
    ceph_sts_server: CephServer, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight seconds of life: the URL ends with them, and the next is of new ones."""
    bucket = ceph_sts_server.bucket()
    bucket.put("k", b"data")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", ceph_sts_server.endpoint)

    def assume() -> None:
        role = ceph_sts_server.assume_role(duration_s=8)
        token = str(role.session_token)
        credentials(role.access_key, role.secret_key, token, lives_s=8)

    assume()
    s3 = S3(tarpon.Store())
    first, until = s3.sign(f"{bucket.url}/k")
    assert get(first) == b"data"
    assert until < time.time() + 8
    while status(first) == 200 and time.time() < until + 20:
        time.sleep(0.2)
    assert status(first) == 403
    assert time.time() > until
    assume()
    second, _ = s3.sign(f"{bucket.url}/k")
    assert get(second) == b"data"
    assert access_key(first) != access_key(second)


def test_credentials_of_the_environment_are_read_anew(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = S3(tarpon.Store())
    before = access_key(s3.sign("s3://bucket/k")[0])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "rotated")
    s3.renew()
    assert (before, access_key(s3.sign("s3://bucket/k")[0])) == ("test:tester", "rotated")


def test_what_goes_wrong_with_credentials_is_told_without_them(
    credentials: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(store: tarpon.Store) -> str:
        with pytest.raises(tarpon.StoreError) as caught:
            S3(store).sign("s3://bucket/k")
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert "hunter2" not in told
        return str(caught.value)

    assert "expected one of ~/.aws/config" in refused(tarpon.Store(profile="nobody"))
    (tmp_path / "credentials.py").write_text("import sys\nsys.exit('token hunter2 refused')\n")
    assert "no credentials came" in refused(tarpon.Store())
    (tmp_path / "credentials.py").write_text("print(open(__file__[:-2] + 'json').read())")
    credentials("OLD", "hunter2", lives_s=-5)
    assert "the credentials have expired" in refused(tarpon.Store())
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    assert "no credentials, expected an access key" in refused(tarpon.Store())
    assert "S3 Express" in _refused_bucket("s3://data--use1-az4--x-s3/k")


def _refused_bucket(url: str) -> str:
    with pytest.raises(tarpon.StoreError) as caught:
        S3(tarpon.Store()).sign(url)
    return str(caught.value)
