"""A proxy that breaks HTTP/1.1 on purpose, to the byte, in a process of its own.

    with faultproxy.running(server.url) as proxy:
        proxy.set_rules(Rule(name="cut", fault=close(at=1000), nth=(2,)))
        ...                                    # talk to proxy.url as one would to server.url
        assert proxy.fired("cut") == 1

What passes is not touched, so signatures stay good. One connection to the store for each of the
client's; a thread for each; no TLS. The rules are those of tests/servers/faults.py: rules of
latency add up, of the others the first that names a request counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.servers import process
from tests.servers.faults import Count, Counts, Rule

SERVER = "tests.servers.faultproxy_server"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as it came in, and the status of the reply (0: none was begun)."""

    method: str
    path: str
    range: str | None
    status: int


class FaultProxy:
    """The hand on a running proxy; for one thread at a time."""

    def __init__(self, server: subprocess.Popen[str], url: str) -> None:
        self._server = server
        self.url = url

    def set_rules(self, *rules: Rule) -> None:
        """Replace the rules, and begin to count anew. Requests under way keep the old ones."""
        names = [rule.name for rule in rules]
        if len(set(names)) < len(names):
            raise ValueError(f"rules named {names}: expected each name once; rename some")
        self._ask(rules=[rule.to_json() for rule in rules])

    def counts(self) -> Counts:
        told = self._ask(counts=True)
        rules = {name: Count(**count) for name, count in told.pop("rules").items()}
        return Counts(rules=rules, **told)

    def fired(self, name: str) -> int:
        """How often the rule's fault has really happened."""
        return self.counts().rules[name].fired

    def requests(self) -> list[Request]:
        """The requests since the rules were set, in the order they came; the last 100,000."""
        return [Request(**request) for request in self._ask(requests=True)["requests"]]

    def _ask(self, **what: Any) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            raise process.ServerError(f"{self.url}: the fault proxy is gone, expected an answer")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def running(upstream: str, *rules: Rule) -> Iterator[FaultProxy]:
    """A proxy before `upstream`, http://HOST:PORT, in 0.1 s. It ends with this process."""
    to = urlsplit(upstream)
    if to.scheme != "http" or to.port is None:
        raise ValueError(f"{upstream}: expected http://HOST:PORT; the proxy speaks no TLS")
    server = subprocess.Popen(
        [sys.executable, "-m", SERVER, to.hostname or "", str(to.port), str(os.getpid())],
        cwd=process.ROOT,
        env=process.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline() or 0)
        if not port:
            raise process.ServerError(f"{SERVER}: ended before it listened; see its stderr")
        proxy = FaultProxy(server, f"http://127.0.0.1:{port}")
        proxy.set_rules(*rules)
        yield proxy
    finally:
        server.kill()  # it keeps nothing
        server.communicate()
