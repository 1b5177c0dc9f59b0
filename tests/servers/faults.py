"""What can go wrong between a client and a store, and when: rules for tests/servers/faultproxy.py.

    Rule(name="cut", fault=close(at=1000), path=r"\\.tar$", ranged=True, nth=(2, 5))

Body offsets count from the first byte of the reply's body; a fault at an offset that a body does
not have does not happen, and is not counted as fired.
"""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to go wrong; made by the functions below."""

    kind: str
    at: int = 0
    seconds: float | None = None
    bytes_per_s: int = 0
    status: int = 0
    code: str = ""
    retry_after_s: int | None = None
    shift: int = 0


def latency(seconds: float) -> Fault:
    """The request waits before it goes on; others do not. Further rules are heard for it."""
    return Fault(kind="latency", seconds=seconds)


def reset(at: int) -> Fault:
    """RST after exactly `at` bytes of the body, all of which have arrived."""
    return Fault(kind="reset", at=at)


def close(at: int) -> Fault:
    """FIN after exactly `at` bytes of the body: fewer than Content-Length said."""
    return Fault(kind="close", at=at)


def stall(at: int, seconds: float | None = None) -> Fault:
    """Nothing more after `at` bytes, and the connection stays open; for `seconds`, or for good."""
    return Fault(kind="stall", at=at, seconds=seconds)


def trickle(at: int, bytes_per_s: int) -> Fault:
    """After `at` bytes the rest comes at `bytes_per_s`, in 20 pieces a second."""
    return Fault(kind="trickle", at=at, bytes_per_s=bytes_per_s)


def slow_start(bytes_per_s: int) -> Fault:
    """The body begins at `bytes_per_s`, and gets twice as fast every 0.1 s."""
    return Fault(kind="slow_start", bytes_per_s=bytes_per_s)


def error(status: int, code: str, *, retry_after_s: int | None = None) -> Fault:
    """S3's reply of XML instead of the object; the connection lives on."""
    return Fault(kind="error", status=status, code=code, retry_after_s=retry_after_s)


def slow_down(retry_after_s: int | None = 1) -> Fault:
    return error(503, "SlowDown", retry_after_s=retry_after_s)


def internal_error() -> Fault:
    return error(500, "InternalError")


def access_denied() -> Fault:
    return error(403, "AccessDenied")


def expired_token(status: int = 400) -> Fault:
    """As AWS says it, 400; some stores say 403."""
    return error(status, "ExpiredToken")


def reset_before_reply() -> Fault:
    """RST once the request has been read."""
    return Fault(kind="reset_before_reply")


def close_before_reply() -> Fault:
    """FIN once the request has been read."""
    return Fault(kind="close_before_reply")


def refuse(seconds: float) -> Fault:
    """RST instead of a reply, and for `seconds` nobody listens: new connections are refused."""
    return Fault(kind="refuse", seconds=seconds)


def garbage() -> Fault:
    """A reply that does not begin as HTTP does; then FIN."""
    return Fault(kind="garbage")


def cut_headers() -> Fault:
    """FIN in the middle of the reply's headers."""
    return Fault(kind="cut_headers")


def wrong_range(shift: int) -> Fault:
    """The right bytes under a Content-Range that names those `shift` further on."""
    return Fault(kind="wrong_range", shift=shift)


def ignore_range() -> Fault:
    """200 and the whole object, whatever range was asked for."""
    return Fault(kind="ignore_range")


def other_length(shift: int) -> Fault:
    """A 206 whose range ends `shift` bytes later (earlier, below 0) than asked, and says so."""
    return Fault(kind="other_length", shift=shift)


def other_etag() -> Fault:
    """The right bytes under another ETag: a store that does not know If-Match, a changed object."""
    return Fault(kind="other_etag")


def changed() -> Fault:
    """As if the object had been replaced: 412 where the request has If-Match, else another ETag."""
    return Fault(kind="changed")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A fault and the requests that meet it: all that match, or those of them that are named.

    Attributes:
        name: What its counters go by.
        method: "GET", "HEAD" ...; None is any.
        path: A regular expression that is searched for in the path (without the query).
        ranged: Only requests with (True) or without (False) a Range header.
        range_bytes: Only requests for a range of at least so many bytes.
        skip: Not the first so many of the matching requests.
        nth: Only these of the matching requests, counted from 1.
        first: Only the first so many.
        every: Only each n-th.
        probability: Each with this chance, drawn from `seed` and the request's number.
    """

    name: str
    fault: Fault
    method: str | None = None
    path: str = ""
    ranged: bool | None = None
    range_bytes: int = 0
    skip: int = 0
    nth: tuple[int, ...] = ()
    first: int | None = None
    every: int | None = None
    probability: float | None = None
    seed: int = 0

    def matches(self, method: str, path: str, asked: str | None) -> bool:
        """Whether it is for such a request; `asked` is its Range."""
        return (
            self.method in (None, method)
            and self.ranged in (None, asked is not None)
            and (not self.range_bytes or _range_bytes(asked) >= self.range_bytes)
            and re.search(self.path, path) is not None
        )

    def names(self, number: int) -> bool:
        """Whether the matching request of this number meets the fault."""
        if self.probability is not None:
            draw = random.Random(f"{self.seed}/{number}").random()
            if draw >= self.probability:
                return False
        return number > self.skip and (
            (not self.nth or number in self.nth)
            and (self.first is None or number <= self.first)
            and (self.every is None or number % self.every == 0)
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Rule:
        changes = {"fault": Fault(**values["fault"]), "nth": tuple(values["nth"])}
        return cls(**(values | changes))


def _range_bytes(asked: str | None) -> float:
    """Bytes of "bytes=0-99"; more than any number of them where it is open."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
    if found is None:
        return 0
    return int(found[2]) - int(found[1]) + 1 if found[2] else float("inf")


@dataclass(kw_only=True)
class Count:
    """What a rule has done.

    Attributes:
        seen: Requests that match.
        chosen: Those that were to meet the fault.
        fired: Those that did: the reply was cut, delayed or altered in truth.
    """

    seen: int = 0
    chosen: int = 0
    fired: int = 0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a proxy has done since its rules were set; `bytes` are of reply bodies."""

    requests: int = 0
    connections: int = 0
    bytes: int = 0
    rules: dict[str, Count] = field(default_factory=dict)
