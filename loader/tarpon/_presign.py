"""Signs GET requests into their URLs (AWS Signature Version 4), quickly. Knows no store.

botocore signs the same, but takes a third of a millisecond for each: 10,000 shards would take
seconds of every start. What does not differ between the URLs of one bucket is worked out once.
Reference: "Authenticating Requests: Using Query Parameters" of the Amazon S3 API Reference.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from time import gmtime, strftime
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Credentials as they are now; `expires_s` in Unix seconds, infinite for permanent ones."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires_s: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A bucket: its URL up to where the key begins, and what its signatures are bound to."""

    base: str
    host: str
    path: str
    region: str
    service: str = "s3"


class Presigner:
    """Signs keys of one bucket with one set of credentials, as of one second."""

    __slots__ = ("_before", "_key", "_place", "_query", "_scope")

    def __init__(
        self, place: Place, keys: Keys, *, now_s: float, lifetime_s: int, requester_pays: bool
    ) -> None:
        time = strftime("%Y%m%dT%H%M%SZ", gmtime(now_s))
        scope = f"{time[:8]}/{place.region}/{place.service}/aws4_request"
        query = {
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{keys.access_key}/{scope}",
            "X-Amz-Date": time,
            "X-Amz-Expires": str(lifetime_s),
            "X-Amz-SignedHeaders": "host",
        }
        if keys.token:
            query["X-Amz-Security-Token"] = keys.token
        if requester_pays:
            query["x-amz-request-payer"] = "requester"
        self._place = place
        self._query = "&".join(f"{name}={quote(query[name], safe='')}" for name in sorted(query))
        self._before = f"{ALGORITHM}\n{time}\n{scope}\n"
        self._key = f"AWS4{keys.secret_key}".encode()
        for part in scope.split("/"):
            self._key = hmac.digest(self._key, part.encode(), "sha256")

    def url(self, key: str) -> str:
        """The signed URL of a key, which is taken as it is: nothing in it is escaped yet."""
        path = escaped(key)
        request = (
            f"GET\n{self._place.path}{path}\n{self._query}\n"
            f"host:{self._place.host}\n\nhost\nUNSIGNED-PAYLOAD"
        )
        text = self._before + hashlib.sha256(request.encode()).hexdigest()
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        return f"{self._place.base}{path}?{self._query}&X-Amz-Signature={signature}"


def escaped(key: str) -> str:
    return quote(key, safe="/~")
