"""What the threads of a fault proxy share: rules with their counters, and the port."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from dataclasses import asdict
from typing import Any

from tests.servers.faults import Count, Fault, Rule
from tests.servers.http1 import Head
from tests.servers.process import free_ports


class Chosen:
    """The fault that one request is to meet, and the counter of its rule."""

    def __init__(self, fault: Fault, count: Count, lock: threading.Lock) -> None:
        self.fault, self._count, self._lock = fault, count, lock

    def fired(self) -> None:
        with self._lock:
            self._count.fired += 1


class Book:
    """Rules and counters, for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.set_rules([])

    def set_rules(self, rules: list[Rule]) -> None:
        with self._lock:
            self._rules = [(rule, Count()) for rule in rules]
            self._connections = self._bytes = self._requests = 0
            self._log: deque[dict[str, Any]] = deque(maxlen=100_000)

    def choose(self, request: Head) -> tuple[list[Chosen], Chosen | None, dict[str, Any]]:
        """The delays and the fault for a request, and its line in the log."""
        asked = request.get("range")
        entry = {"method": request.method, "path": request.path, "range": asked, "status": 0}
        delays: list[Chosen] = []
        with self._lock:
            self._requests += 1
            self._log.append(entry)
            for rule, count in self._rules:
                if not rule.matches(request.method, request.path, asked):
                    continue
                count.seen += 1
                if not rule.names(count.seen):
                    continue
                count.chosen += 1
                chosen = Chosen(rule.fault, count, self._lock)
                if rule.fault.kind != "latency":
                    return delays, chosen, entry
                delays.append(chosen)
        return delays, None, entry

    def connected(self) -> None:
        with self._lock:
            self._connections += 1

    def passed(self, count: int) -> None:
        with self._lock:
            self._bytes += count

    def counts(self) -> dict[str, Any]:
        with self._lock:
            return {
                "requests": self._requests,
                "connections": self._connections,
                "bytes": self._bytes,
                "rules": {rule.name: asdict(count) for rule, count in self._rules},
            }

    def requests(self) -> list[dict[str, Any]]:
        with self._lock:
            return list(self._log)


class Listener:
    """The port of the proxy, which can be closed to new connections for a while."""

    def __init__(self) -> None:
        # A port the kernel picked would be given back with the first refusal; a named one stays.
        [self.port] = free_ports(1)
        self._sock = socket.create_server(("127.0.0.1", self.port), backlog=4096)
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self._timer = threading.Timer(0, self.listen)

    def refuse(self, seconds: float) -> None:
        """Stop to listen, which keeps the port ours: connects are refused."""
        with self._lock:
            if self._open.is_set():
                self._open.clear()
                self._sock.shutdown(socket.SHUT_RD)
                self._timer = threading.Timer(seconds, self.listen)
                self._timer.daemon = True
                self._timer.start()

    def listen(self) -> None:
        """End a refusal, if there is one."""
        with self._lock:
            self._timer.cancel()
            if not self._open.is_set():
                self._sock.listen(4096)
                self._open.set()

    def accept(self) -> socket.socket:
        while True:
            self._open.wait()
            with contextlib.suppress(OSError):  # EINVAL: not listening, just now
                return self._sock.accept()[0]
