"""Each fault as a raw client sees it: to the byte, and only where a rule names the request."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.servers import faultproxy, nginx
from tests.servers.faults import (
    Fault,
    Rule,
    access_denied,
    changed,
    close,
    close_before_reply,
    cut_headers,
    error,
    expired_token,
    garbage,
    ignore_range,
    internal_error,
    latency,
    other_etag,
    other_length,
    refuse,
    reset,
    reset_before_reply,
    slow_down,
    slow_start,
    stall,
    trickle,
    wrong_range,
)
from tests.servers.fixtures import FaultProxies
from tests.servers.s3 import Bucket

BODY = bytes(i * 7 % 251 for i in range(1_000_000))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came over one connection, and how it ended: reset, closed, complete or silent."""

    head: str
    body: bytes
    end: str
    seconds: float

    def header(self, name: str) -> str | None:
        found = re.search(rf"(?im)^{name}: *(.*?)\r?$", self.head)
        return found[1] if found else None

    @property
    def status(self) -> int:
        return int(self.head.split(" ")[1])


def ask(url: str, *headers: str, method: str = "GET", silent_s: float = 5) -> Seen:
    """One request on a connection of its own; reads until it is complete or at an end."""
    host, port, path = re.fullmatch(r"http://(.*?):(\d+)(/.*)", url).groups()  # type: ignore[union-attr]
    began, data, end = time.monotonic(), b"", ""
    with socket.create_connection((host, int(port)), timeout=silent_s) as sock:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", *headers, "", ""]
        sock.sendall("\r\n".join(lines).encode())
        while not end:
            try:
                more = sock.recv(1 << 16)
            except ConnectionResetError:
                end = "reset"
            except TimeoutError:
                end = "silent"
            else:
                data += more
                head, found, body = data.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if not more:
                    end = "closed"
                elif found and length and (method == "HEAD" or len(body) == int(length[1])):
                    end = "complete"
    head, _, body = data.partition(b"\r\n\r\n")
    return Seen(head=head.decode("latin1"), body=body, end=end, seconds=time.monotonic() - began)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[faultproxy.FaultProxy]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.tar").write_bytes(BODY)
    (folder / "b.json").write_bytes(b"{}")
    with nginx.running(folder) as server, faultproxy.running(server.url) as proxy:
        yield proxy


@pytest.fixture
def url(proxy: faultproxy.FaultProxy) -> str:
    return proxy.url + "/a.tar"


def with_fault(proxy: faultproxy.FaultProxy, fault: Fault) -> None:
    proxy.set_rules(Rule(name="it", fault=fault))


def test_nothing_is_touched_without_rules(proxy: faultproxy.FaultProxy, url: str) -> None:
    proxy.set_rules()
    whole = ask(url)
    assert (whole.status, whole.body == BODY, whole.end) == (200, True, "complete")
    part = ask(url, "Range: bytes=10-19")
    assert (part.status, part.body) == (206, BODY[10:20])
    assert ask(url, method="HEAD").header("content-length") == "1000000"
    counts = proxy.counts()
    assert (counts.requests, counts.connections, counts.bytes) == (3, 3, 1_000_010)
    log = [(asked.method, asked.path, asked.range, asked.status) for asked in proxy.requests()]
    assert log == [
        ("GET", "/a.tar", None, 200),
        ("GET", "/a.tar", "bytes=10-19", 206),
        ("HEAD", "/a.tar", None, 200),
    ]


@pytest.mark.parametrize("at", [0, 1, 65_535, 500_001, 999_999])
@pytest.mark.parametrize(("fault", "end"), [(reset, "reset"), (close, "closed")])
def test_bodies_end_at_the_byte(
    proxy: faultproxy.FaultProxy, url: str, fault: type, end: str, at: int
) -> None:
    with_fault(proxy, fault(at))
    seen = ask(url)
    assert (seen.status, seen.header("content-length"), seen.end) == (200, "1000000", end)
    assert seen.body == BODY[:at]
    assert proxy.fired("it") == 1


def test_a_fault_behind_the_end_does_not_happen(proxy: faultproxy.FaultProxy, url: str) -> None:
    with_fault(proxy, reset(1_000_000))
    assert ask(url).body == BODY
    count = proxy.counts().rules["it"]
    assert (count.seen, count.chosen, count.fired) == (1, 1, 0)


def test_a_stall_is_silent_and_open(proxy: faultproxy.FaultProxy, url: str) -> None:
    with_fault(proxy, stall(1234))
    seen = ask(url, silent_s=0.6)
    assert (seen.end, seen.body) == ("silent", BODY[:1234])
    with_fault(proxy, stall(1234, seconds=0.3))
    seen = ask(url)
    assert (seen.end, seen.body == BODY) == ("complete", True)
    assert 0.3 <= seen.seconds < 3
    assert proxy.fired("it") == 1


def test_a_trickle_keeps_its_rate(proxy: faultproxy.FaultProxy, url: str) -> None:
    with_fault(proxy, trickle(900_000, bytes_per_s=400_000))
    seen = ask(url)
    assert seen.body == BODY
    assert 0.2 <= seen.seconds < 3
    assert proxy.fired("it") == 1


def test_a_slow_start_gets_faster(proxy: faultproxy.FaultProxy, url: str) -> None:
    with_fault(proxy, slow_start(bytes_per_s=500_000))
    seen = ask(url)
    assert seen.body == BODY
    assert 0.1 <= seen.seconds < 1.9  # 2 s at the first rate
    assert proxy.fired("it") == 1


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (slow_down(3), 503, "SlowDown"),
        (internal_error(), 500, "InternalError"),
        (access_denied(), 403, "AccessDenied"),
        (expired_token(), 400, "ExpiredToken"),
        (expired_token(403), 403, "ExpiredToken"),
        (error(404, "NoSuchKey"), 404, "NoSuchKey"),
    ],
)
def test_errors_are_s3s(
    proxy: faultproxy.FaultProxy, url: str, fault: Fault, status: int, code: str
) -> None:
    with_fault(proxy, fault)
    seen = ask(url)
    assert (seen.status, seen.end) == (status, "complete")
    assert f"<Code>{code}</Code>".encode() in seen.body
    assert seen.header("retry-after") == ("3" if status == 503 else None)
    assert ask(url, method="HEAD").status == status
    assert proxy.fired("it") == 2


def test_a_connection_lives_on_after_an_error(proxy: faultproxy.FaultProxy, url: str) -> None:
    import http.client

    proxy.set_rules(Rule(name="it", fault=slow_down(), nth=(1,)))
    connection = http.client.HTTPConnection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
    for status in (503, 200):
        connection.request("GET", "/a.tar")
        reply = connection.getresponse()
        reply.read()
        assert reply.status == status
    connection.close()
    assert proxy.counts().connections == 1


@pytest.mark.parametrize(
    ("fault", "end"), [(reset_before_reply(), "reset"), (close_before_reply(), "closed")]
)
def test_connections_end_before_a_reply(
    proxy: faultproxy.FaultProxy, url: str, fault: Fault, end: str
) -> None:
    with_fault(proxy, fault)
    seen = ask(url)
    assert (seen.head, seen.body, seen.end) == ("", b"", end)
    assert proxy.fired("it") == 1


def test_connections_are_refused_for_a_while(proxy: faultproxy.FaultProxy, url: str) -> None:
    proxy.set_rules(Rule(name="it", fault=refuse(0.8), nth=(1,)))
    assert ask(url).end == "reset"
    with pytest.raises(ConnectionRefusedError):
        ask(url)
    time.sleep(0.9)
    assert ask(url).body == BODY
    assert proxy.fired("it") == 1


def test_replies_that_are_no_http(proxy: faultproxy.FaultProxy, url: str) -> None:
    with_fault(proxy, garbage())
    seen = ask(url)
    assert seen.end == "closed"
    assert not seen.head.startswith("HTTP/")
    with_fault(proxy, cut_headers())
    seen = ask(url)
    assert seen.end == "closed"
    assert seen.head.startswith("HTTP/1.1 200 OK\r\n")
    assert seen.body == b""
    assert proxy.fired("it") == 1


def test_ranges_that_are_not_what_was_asked(proxy: faultproxy.FaultProxy, url: str) -> None:
    asked = "Range: bytes=100-199"
    with_fault(proxy, wrong_range(50))
    seen = ask(url, asked)
    assert (seen.status, seen.header("content-range")) == (206, "bytes 150-249/1000000")
    assert seen.body == BODY[100:200]
    with_fault(proxy, ignore_range())
    seen = ask(url, asked)
    assert (seen.status, seen.header("content-range")) == (200, None)
    assert seen.body == BODY
    for shift, last in ((-10, 189), (10, 209)):
        with_fault(proxy, other_length(shift))
        seen = ask(url, asked)
        assert (seen.status, seen.header("content-range")) == (206, f"bytes 100-{last}/1000000")
        assert seen.body == BODY[100 : last + 1]
        assert proxy.fired("it") == 1
    assert ask(url).body == BODY
    assert proxy.fired("it") == 1, "no range, no fault"


def test_objects_that_have_changed(proxy: faultproxy.FaultProxy, url: str) -> None:
    proxy.set_rules()
    etag = ask(url, method="HEAD").header("etag")
    with_fault(proxy, other_etag())
    seen = ask(url, "Range: bytes=0-9", f"If-Match: {etag}")
    assert (seen.status, seen.body) == (206, BODY[:10])
    assert seen.header("etag") not in (None, etag)
    with_fault(proxy, changed())
    refused = ask(url, f"If-Match: {etag}")
    assert (refused.status, b"<Code>PreconditionFailed</Code>" in refused.body) == (412, True)
    assert ask(url).header("etag") == seen.header("etag")
    assert proxy.fired("it") == 2


def test_latency_adds_up_and_lets_others_pass(proxy: faultproxy.FaultProxy, url: str) -> None:
    proxy.set_rules(
        Rule(name="far", fault=latency(0.05)),
        Rule(name="farther", fault=latency(0.1), ranged=True),
        Rule(name="gone", fault=error(404, "NoSuchKey"), ranged=True, nth=(1,)),
    )
    seen = ask(url, "Range: bytes=0-9")
    assert (seen.status, 0.15 <= seen.seconds < 1) == (404, True)
    threads = [threading.Thread(target=ask, args=(proxy.url + "/b.json",)) for _ in range(200)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 5, "one after the other they wait 10 s"
    assert {name: count.fired for name, count in proxy.counts().rules.items()} == {
        "far": 201,
        "farther": 1,
        "gone": 1,
    }


def statuses(proxy: faultproxy.FaultProxy, url: str, rule: Rule, count: int) -> list[bool]:
    proxy.set_rules(rule)
    return [ask(url).status == 500 for _ in range(count)]


def test_rules_name_requests(proxy: faultproxy.FaultProxy, url: str) -> None:
    fault = internal_error()
    met = statuses(proxy, url, Rule(name="it", fault=fault, nth=(2, 4)), 5)
    assert met == [False, True, False, True, False]
    assert statuses(proxy, url, Rule(name="it", fault=fault, first=2), 3) == [True, True, False]
    met = statuses(proxy, url, Rule(name="it", fault=fault, every=3), 6)
    assert met == [False, False, True, False, False, True]
    assert statuses(proxy, url, Rule(name="it", fault=fault, skip=1), 3) == [False, True, True]
    proxy.set_rules(Rule(name="it", fault=fault, range_bytes=10))
    asked = ("bytes=0-8", "bytes=0-9", "bytes=9-", None)
    seen = [ask(url, *([f"Range: {each}"] if each else [])).status for each in asked]
    assert seen == [206, 500, 500, 200]
    for other in (
        Rule(name="it", fault=fault, path=r"\.json$"),
        Rule(name="it", fault=fault, method="PUT"),
        Rule(name="it", fault=fault, ranged=True),
    ):
        assert statuses(proxy, url, other, 1) == [False]
        assert proxy.counts().rules["it"].seen == 0
    with pytest.raises(ValueError, match="expected each name once"):
        proxy.set_rules(Rule(name="it", fault=fault), Rule(name="it", fault=fault))


def test_chance_is_seeded(proxy: faultproxy.FaultProxy, url: str) -> None:
    rules = [Rule(name="it", fault=internal_error(), probability=0.3, seed=s) for s in (1, 2)]
    first, again = (statuses(proxy, url, rules[0], 60) for _ in range(2))
    assert first == again
    assert first != statuses(proxy, url, rules[1], 60)
    assert 6 < sum(first) < 30
    assert proxy.fired("it") == sum(rules[1].names(n) for n in range(1, 61))


def test_signatures_and_uploads_pass(s3_bucket: Bucket, fault_proxy: FaultProxies) -> None:
    """boto3 sends chunks with a checksum behind them, and waits for 100 Continue."""
    from dataclasses import replace

    proxy = fault_proxy(s3_bucket.server.endpoint)
    client = replace(s3_bucket.server, endpoint=proxy.url).client()
    client.put_object(Bucket=s3_bucket.name, Key="k", Body=BODY)
    assert client.get_object(Bucket=s3_bucket.name, Key="k")["Body"].read() == BODY
    listed = client.list_objects_v2(Bucket=s3_bucket.name)["Contents"]
    assert [(entry["Key"], entry["Size"]) for entry in listed] == [("k", len(BODY))]
    proxy.set_rules(Rule(name="it", fault=slow_down(0), nth=(1,)))
    assert client.get_object(Bucket=s3_bucket.name, Key="k")["ContentLength"] == len(BODY)
    assert proxy.fired("it") == 1, "boto3 tried again"
