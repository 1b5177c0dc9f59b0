"""The process of a fault proxy: HOST PORT PID; see tests/servers/faultproxy.py.

It prints its port, then answers each line of JSON on stdin with one on stdout. It ends when stdin
does or when process PID is gone.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from typing import Any

from tests.servers.faultproxy_state import Book, Chosen, Listener
from tests.servers.faults import Fault, Rule
from tests.servers.http1 import Gone, Head, Wire, pass_chunked, pass_on

TICK_S = 0.05  # between the pieces of a trickle
MESSAGES = {
    "AccessDenied": "Access Denied",
    "ExpiredToken": "The provided token has expired.",
    "InternalError": "We encountered an internal error. Please try again.",
    "PreconditionFailed": "At least one of the pre-conditions you specified did not hold",
    "SlowDown": "Please reduce your request rate.",
}


class Connection:
    """A client's connection, and the one to the store that goes with it."""

    def __init__(
        self, client: socket.socket, upstream: tuple[str, int], book: Book, listener: Listener
    ) -> None:
        self.client, self.book, self.listener = Wire(client), book, listener
        self._to = upstream
        self._store: Wire | None = None

    def serve(self) -> None:
        self.book.connected()
        try:
            while self.exchange():
                pass
        except OSError:
            pass  # either side went away; so does the other
        finally:
            self.client.close()
            self._leave_store()

    def _leave_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    # ---- one request and its reply; False ends the connection

    def exchange(self) -> bool:
        data = self.client.head()
        if not data:
            return False
        request = Head(data)
        delays, chosen, entry = self.book.choose(request)
        for delay in delays:
            time.sleep(delay.fault.seconds or 0)
            delay.fired()
        if chosen is not None and (done := self.instead(request, chosen, entry)) is not None:
            return done
        expected = (request.get("range"), request.ends_connection)
        if chosen is not None:
            self.alter_request(request, chosen)
        reply = self.ask(request)
        entry["status"] = reply.status
        if chosen is not None and not self.alter_reply(reply, chosen, expected[0]):
            return False
        self.client.send(bytes(reply))
        if not self.body(request, reply, chosen):
            return False
        return not (expected[1] or reply.ends_connection)

    def instead(self, request: Head, chosen: Chosen, entry: dict[str, Any]) -> bool | None:
        """Faults that come in place of a reply; None for those that do not."""
        fault = chosen.fault
        kind = fault.kind
        if kind == "changed" and request.get("if-match") is not None:
            fault, kind = Fault(kind="error", status=412, code="PreconditionFailed"), "error"
        if kind not in ("error", "garbage", "reset_before_reply", "close_before_reply", "refuse"):
            return None
        self.discard_body(request)
        chosen.fired()
        if kind == "error":
            entry["status"] = fault.status
            self.client.send(_error_reply(fault, request))
            return not (request.ends_connection or request.chunked)
        if kind == "garbage":
            self.client.send(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        elif kind == "refuse":
            self.listener.refuse(fault.seconds or 0)
            self.client.reset()
        elif kind == "reset_before_reply":
            self.client.reset()
        return False

    def discard_body(self, request: Head) -> None:
        left = request.length or 0
        if left and request.get("expect"):
            self.client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while left:
            left -= len(self.client.take(left)) or left

    def alter_request(self, request: Head, chosen: Chosen) -> None:
        asked = request.get("range")
        if asked is None:
            return
        if chosen.fault.kind == "ignore_range":
            request.drop("range")
            chosen.fired()
        elif chosen.fault.kind == "other_length":
            start, _, end = asked.removeprefix("bytes=").partition("-")
            if start and end:
                last = max(int(start), int(end) + chosen.fault.shift)
                request.set("Range", f"bytes={start}-{last}")

    def alter_reply(self, reply: Head, chosen: Chosen, asked: str | None) -> bool:
        """Alter the head of a reply; False if that was the end of it."""
        kind, told = chosen.fault.kind, reply.get("content-range")
        if kind == "cut_headers":
            data = bytes(reply)
            self.client.send(data[: len(data) // 2])
            chosen.fired()
            return False
        if kind in ("other_etag", "changed") and reply.get("etag") is not None:
            reply.set("ETag", '"' + (reply.get("etag") or "").strip('"')[::-1] + '-0"')
            chosen.fired()
        elif kind == "wrong_range" and told is not None:
            start, end, total = told.removeprefix("bytes ").replace("/", "-").split("-")
            shift = chosen.fault.shift
            reply.set("Content-Range", f"bytes {int(start) + shift}-{int(end) + shift}/{total}")
            chosen.fired()
        elif kind == "other_length" and asked is not None and told is not None:
            range_told = told.removeprefix("bytes ").partition("/")[0]
            if range_told != asked.removeprefix("bytes="):
                chosen.fired()
        return True

    def ask(self, request: Head) -> Head:
        """Send the request and its body to the store; the head of the reply."""
        for attempt in range(2):
            fresh = self._store is None
            if self._store is None:
                self._store = Wire(socket.create_connection(self._to))
            has_body = request.chunked or bool(request.length)
            try:
                self._store.send(bytes(request))
                reply = self.upload(request, self._store) if has_body else self._store.head()
                while reply and Head(reply).status == 100:
                    reply = self._store.head()
            except OSError:
                reply = b""
            if reply:
                return Head(reply)
            self._leave_store()
            if fresh or has_body or attempt:
                break  # a store may end an idle connection, and only that
        raise Gone("the store closed instead of a reply")

    def upload(self, request: Head, store: Wire) -> bytes:
        if request.get("expect"):
            reply = store.head()
            if not reply or Head(reply).status != 100:
                return reply
            self.client.send(reply)
        if request.chunked:
            pass_chunked(self.client, store)
        else:
            pass_on(self.client, store, request.length)
        return store.head()

    # ---- bodies

    def body(self, request: Head, reply: Head, chosen: Chosen | None) -> bool:
        store = self._store
        assert store is not None
        if request.method == "HEAD" or reply.status in (204, 304):
            return True
        if reply.chunked:
            pass_chunked(store, self.client)
            return True
        length = reply.length
        if length is None:
            pass_on(store, self.client, None, self.book.passed)
            return False
        left = length
        kinds = ("reset", "close", "stall", "trickle", "slow_start")
        if chosen is not None and chosen.fault.kind in kinds and chosen.fault.at < length:
            pass_on(store, self.client, chosen.fault.at, self.book.passed)
            left -= chosen.fault.at
            if not self.spoil_rest(store, left, chosen):
                return False
            left = 0 if chosen.fault.kind in ("trickle", "slow_start") else left
        pass_on(store, self.client, left, self.book.passed)
        return True

    def spoil_rest(self, store: Wire, left: int, chosen: Chosen) -> bool:
        """The fault of a body, at its offset; False ends the connection."""
        fault = chosen.fault
        chosen.fired()
        if fault.kind == "reset":
            self.client.reset()
        elif fault.kind == "stall":
            return not self.client_leaves_within(fault.seconds)
        elif fault.kind in ("trickle", "slow_start"):
            rate, since = float(fault.bytes_per_s), time.monotonic()
            while left:
                piece = max(1, int(rate * TICK_S))
                left -= pass_on(store, self.client, min(left, piece), self.book.passed)
                time.sleep(max(TICK_S, 1 / rate) if left else 0)
                if fault.kind == "slow_start":
                    rate = fault.bytes_per_s * 2 ** ((time.monotonic() - since) / 0.1)
            return True
        return False

    def client_leaves_within(self, seconds: float | None) -> bool:
        poll = select.poll()
        poll.register(self.client.sock, select.POLLRDHUP | select.POLLIN)
        return bool(poll.poll(None if seconds is None else round(seconds * 1000)))


def _error_reply(fault: Fault, request: Head) -> bytes:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code>"
        f"<Message>{MESSAGES.get(fault.code, fault.code)}</Message>"
        f"<Resource>{request.path}</Resource><RequestId>FAULT</RequestId></Error>"
    ).encode()
    retry = "" if fault.retry_after_s is None else f"Retry-After: {fault.retry_after_s}\r\n"
    head = (
        f"HTTP/1.1 {fault.status} Fault\r\nContent-Type: application/xml\r\n"
        f"x-amz-request-id: FAULT\r\nContent-Length: {len(body)}\r\n{retry}\r\n"
    ).encode("latin1")
    return head if request.method == "HEAD" else head + body


def answer(book: Book, listener: Listener, asked: dict[str, Any]) -> dict[str, Any]:
    if "rules" in asked:
        listener.listen()  # what an old rule began
        book.set_rules([Rule.from_json(values) for values in asked["rules"]])
    if "requests" in asked:
        return {"requests": book.requests()}
    return book.counts()


def end_with(pid: int) -> None:
    poll = select.poll()
    poll.register(os.pidfd_open(pid), select.POLLIN)
    poll.poll()
    os._exit(0)


def accept_all(listener: Listener, upstream: tuple[str, int], book: Book) -> None:
    while True:
        connection = Connection(listener.accept(), upstream, book, listener)
        threading.Thread(target=connection.serve, daemon=True).start()


def main() -> None:
    host, port, pid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.setswitchinterval(0.0005)  # threads do little between two system calls
    threading.stack_size(256 << 10)
    book, listener = Book(), Listener()
    threading.Thread(target=end_with, args=(pid,), daemon=True).start()
    threading.Thread(target=accept_all, args=(listener, (host, port), book), daemon=True).start()
    print(listener.port, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(book, listener, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
