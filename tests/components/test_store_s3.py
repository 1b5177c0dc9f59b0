"""The S3 store against real servers: large uploads, what is left of broken ones, and its errors."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from components import s3
from components.store import Store, StoreError
from components.store_s3 import PART_BYTES
from tests.servers import faults, tls
from tests.servers.faults import Rule
from tests.servers.fixtures import FaultProxies
from tests.servers.s3 import Bucket, S3Server

ROOT = Path(__file__).resolve().parents[2]
BIG = 2 * PART_BYTES + 1000


@pytest.fixture
def bucket(s3_environment: S3Server) -> Bucket:
    return s3_environment.bucket()


@contextlib.contextmanager
def on(event: str, do: Callable[..., Any]) -> Iterator[None]:
    """Call `do` at an event of botocore's client."""
    events = s3.client().meta.events
    events.register(event, do)
    try:
        yield
    finally:
        events.unregister(event, do)


def unfinished(bucket: Bucket) -> list[str]:
    found = bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    return [upload["Key"] for upload in found]


def corrupted(request: Any, **_: Any) -> None:
    """One bit of the body turns over between the checksum and the wire."""
    body = request.body if isinstance(request.body, bytes) else request.body.read()
    request.body = bytes([body[0] ^ 1]) + body[1:]


# --- uploads -------------------------------------------------------------------------------------


def test_a_large_object_goes_up_in_parts_and_comes_back_whole(bucket: Bucket) -> None:
    data = os.urandom(BIG)
    store = Store(bucket.url)
    with store.open_temp("big.tar") as file:
        file.write(data)
        assert store.list() == []
    entry = store.entries()["big.tar"]
    assert entry.size == BIG
    assert entry.etag is not None
    assert entry.etag.endswith('-3"')
    assert bucket.get("big.tar") == data == store.read_bytes("big.tar")
    assert unfinished(bucket) == []


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
def test_bytes_that_change_on_the_way_are_refused_by_their_crc(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The signature is told to leave the payload alone, as over TLS, so that the CRC is alone."""
    profile = tmp_path / "config"
    profile.write_text("[default]\ns3 =\n  payload_signing_enabled = false\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profile))
    store = Store(bucket.url)
    sizes = {"PutObject": 100, "UploadPart": BIG}
    store.write_bytes("good", bytes(sizes[operation]))
    with (
        on(f"before-send.s3.{operation}", corrupted),
        pytest.raises(StoreError, match=rf"bad: the server received other bytes.*{operation}"),
    ):
        store.write_bytes("bad", bytes(sizes[operation]))
    assert store.list() == ["good"]
    assert unfinished(bucket) == []


KILLED = """
import os, signal, sys
from components import s3
from components.store import Store

def die(**_):
    os.kill(os.getpid(), signal.SIGKILL)

def part(params, **_):
    if params["PartNumber"] == 2:
        s3.client().meta.events.register("after-call.s3.UploadPart", die)

s3.client().meta.events.register("provide-client-params.s3.UploadPart", part)
with Store(sys.argv[1]).open_temp("x") as file:
    file.write(bytes(int(sys.argv[2])))
"""


def test_an_upload_killed_midway_leaves_no_object(bucket: Bucket) -> None:
    command = [sys.executable, "-c", KILLED, bucket.url, str(BIG)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = Store(bucket.url)
    assert store.list() == []
    assert not store.exists("x")
    assert unfinished(bucket) == ["x"]  # for the bucket's lifecycle rule to clear away
    store.write_bytes("x", bytes(BIG))
    assert store.list() == ["x"]


def test_an_upload_that_fails_takes_its_parts_back(bucket: Bucket) -> None:
    def interrupt(params: dict[str, Any], **_: Any) -> None:
        if params["PartNumber"] == 3:
            raise KeyError("midway")

    with (
        on("provide-client-params.s3.UploadPart", interrupt),
        pytest.raises(KeyError, match="midway"),
    ):
        Store(bucket.url).write_bytes("x", bytes(BIG))
    assert Store(bucket.url).list() == []
    assert unfinished(bucket) == []


# --- a bad line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [faults.close, faults.reset])
def test_a_stream_goes_on_where_its_connection_broke(
    bucket: Bucket,
    fault_proxy: FaultProxies,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[int], faults.Fault],
) -> None:
    data = os.urandom(3_000_000)
    bucket.put("x", data)
    rule = Rule(name="cut", fault=fault(1_100_000), path="/x$", method="GET")
    proxy = fault_proxy(bucket.server.endpoint, rule)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    with Store(bucket.url).open("x") as stream:
        assert stream.read() == data
    assert proxy.fired("cut") == 2
    first, *later = [request.range for request in proxy.requests()]
    assert first is None
    starts = [int(range_.removeprefix("bytes=").removesuffix("-")) for range_ in later]
    assert [start // 1_000_000 for start in starts] == [1, 2]  # what had come was kept


@pytest.mark.parametrize("fault", [faults.wrong_range(512), faults.other_etag()])
def test_a_server_that_goes_on_elsewhere_is_not_believed(
    bucket: Bucket,
    fault_proxy: FaultProxies,
    monkeypatch: pytest.MonkeyPatch,
    fault: faults.Fault,
) -> None:
    bucket.put("x", os.urandom(3_000_000))
    cut = Rule(name="cut", fault=faults.close(1_100_000), path="/x$", ranged=False)
    then = Rule(name="then", fault=fault, path="/x$", ranged=True)
    proxy = fault_proxy(bucket.server.endpoint, cut, then)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    with (
        Store(bucket.url).open("x") as stream,
        pytest.raises(StoreError, match=r"x: the server sent .* expected bytes 1100000-2999999/"),
    ):
        stream.read()
    assert proxy.fired("then") == 1


def test_an_object_that_changes_while_it_is_read_is_no_mixture(
    bucket: Bucket, fault_proxy: FaultProxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("x", bytes(3_000_000))
    rule = Rule(name="cut", fault=faults.close(1_100_000), path="/x$", method="GET")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", fault_proxy(bucket.server.endpoint, rule).url)
    with Store(bucket.url).open("x") as stream:
        stream.read(10)
        bucket.put("x", b"1" * 3_000_000)
        with pytest.raises(StoreError, match=r"at byte 1100000: it changed while it was read"):
            stream.read()


def test_a_manifest_whose_answer_was_lost_is_not_taken_for_anothers(
    bucket: Bucket, fault_proxy: FaultProxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put that botocore repeats finds its own object there, and is told 412."""
    rule = Rule(name="lost", fault=faults.cut_headers(), path="/x$", method="PUT", nth=(1,))
    proxy = fault_proxy(bucket.server.endpoint, rule)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    Store(bucket.url).publish("x", b"mine")
    assert proxy.fired("lost") == 1
    assert bucket.get("x") == b"mine"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (faults.expired_token(), "the credentials have expired (ExpiredToken to"),
        (faults.access_denied(), "access denied (AccessDenied to"),
        (faults.slow_down(), "the server is busy and stayed so (SlowDown to"),
        (
            faults.error(400, "IllegalLocationConstraintException"),
            "the bucket is in another region",
        ),
        (faults.error(507, "QuotaExceeded"), "no room left (QuotaExceeded to"),
        (faults.error(418, "Teapot"), "the server said 418 (Teapot to"),
    ],
)
def test_refusals_say_what_to_do(
    bucket: Bucket,
    fault_proxy: FaultProxies,
    monkeypatch: pytest.MonkeyPatch,
    fault: faults.Fault,
    said: str,
) -> None:
    monkeypatch.setattr("components.s3.ATTEMPTS", 2)
    proxy = fault_proxy(bucket.server.endpoint, Rule(name="no", fault=fault))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    assert said in refusal(bucket.url)


@contextlib.contextmanager
def tls_before(endpoint: str, certificate: tls.Certificate) -> Iterator[str]:
    """The same server by https."""
    there = (urlsplit(endpoint).hostname, urlsplit(endpoint).port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)

    def pipe(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(there) as server,
        ):
            back = threading.Thread(target=pipe, args=(server, client), daemon=True)
            back.start()
            pipe(client, server)
            back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(("name", "told"), [("s3_server", 0), ("ceph_server", 1)])
def test_over_tls_a_server_without_trailing_checksums_is_spared_them(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    told: int,
) -> None:
    server: S3Server = request.getfixturevalue(name)
    server.set_environment(monkeypatch)
    bucket = server.bucket()
    certificate = tls.make_certificate(tmp_path)
    with tls_before(server.endpoint, certificate) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        monkeypatch.setattr("components.s3.ATTEMPTS", 1)
        with pytest.raises(StoreError, match="AWS_CA_BUNDLE"):
            Store(bucket.url).list()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.authority))
        store = Store(bucket.url)
        for size in (100, BIG, 100):
            store.write_bytes(str(size), bytes(size))
        assert store.list() == ["100", str(BIG)]
        assert bucket.get(str(BIG)) == bytes(BIG)
    assert caplog.text.count("takes no checksums") == told


# --- what it says --------------------------------------------------------------------------------


def refusal(root: str) -> str:
    """What the store says when it is asked to write; the same again when it is asked to read."""
    said = []
    store = Store(root)
    for call in (store.check_writable, store.list):
        with pytest.raises(StoreError) as caught:
            call()
        said.append(str(caught.value))
        assert str(caught.value).startswith(f"{root}: ")
    first, second = (text.partition(" (")[0] for text in said)
    assert first == second
    return said[0]


def test_a_missing_bucket_is_named(s3_environment: S3Server) -> None:
    assert "no such bucket" in refusal("s3://tarpon-no-such/x")


def test_missing_credentials_are_asked_for(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "found no credentials, expected an access key" in refusal(bucket.url)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"nobody.*AWS_PROFILE"):
        Store(bucket.url).list()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "the signature is wrong"),
        ("AWS_ACCESS_KEY_ID", "NOBODYSKEY", "the server does not know the access key"),
    ],
)
def test_wrong_credentials_are_told_apart_and_never_shown(
    ceph_server: S3Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    ceph_server.set_environment(monkeypatch)
    bucket = ceph_server.bucket()
    monkeypatch.setenv(name, value)
    told = refusal(bucket.url)
    assert said in told
    for secret in (ceph_server.secret_key, "not-the-secret", "NOBODYSKEY", "Signature="):
        assert secret not in told


def test_an_endpoint_where_nobody_answers_is_named(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.s3.ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert "no answer from http://127.0.0.1:9" in refusal(bucket.url)


def test_a_server_of_ones_own_is_asked_by_its_own_name(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`bucket.minio` would not resolve; Amazon's own names are left as botocore has them."""

    def address() -> str:
        url: str = s3.client().generate_presigned_url(
            "get_object", Params={"Bucket": "bucket", "Key": "key"}
        )
        return url.partition("?")[0]

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio:9000")
    assert address() == "http://minio:9000/bucket/key"
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert address() == "https://bucket.s3.amazonaws.com/key"
