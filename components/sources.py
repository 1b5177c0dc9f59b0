"""Reading one source file, wherever it lies: a local path, `s3://bucket/key` or `http(s)://`.

What is wrong with the one file is a `SourceError`; what is wrong with the whole store (no network,
no credentials) is a `StoreError`, so that nobody takes an outage for a thousand bad files.
"""

from __future__ import annotations

import functools
import os
from urllib.parse import parse_qsl, urlsplit

import urllib3
from urllib3.util import Retry, Timeout

from components import s3
from components.store import split_url, without_secrets

TRIES = 4
SIGNED = "signed url"
"""The reason for not fetching a URL that carries credentials."""

_PIECE_BYTES = 1 << 20
_SECRET_WORDS = ("signature", "sig", "token", "accesskey", "credential", "password", "secret")


class SourceError(ValueError):
    """One file cannot be had.

    Attributes:
        reason: Two or three words to be counted by.
        detail: The rest of the sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def is_remote(uri: str) -> bool:
    """Whether a file is to be fetched."""
    return uri.lower().startswith(("s3://", "http://", "https://"))


def read(uri: str) -> bytes:
    """The whole file.

    Raises:
        SourceError, StoreError: See the module.
    """
    if is_remote(uri):
        found = fetch(uri)
        assert found is not None  # no ETag was given
        return found[0]
    store, name = split_url(uri)
    return store.read_bytes(name)


def fetch(
    uri: str, *, unless: str | None = None, max_bytes: int | None = None
) -> tuple[bytes, str] | None:
    """A remote file and its ETag (or date); None when that is still `unless`: nothing is loaded.

    Raises:
        SourceError, StoreError: See the module; also larger than `max_bytes`.
    """
    if s3.is_url(uri):
        return _fetch_s3(uri, unless, max_bytes)
    return _fetch_http(uri, unless, max_bytes)


def _fetch_s3(uri: str, unless: str | None, max_bytes: int | None) -> tuple[bytes, str] | None:
    bucket, key = s3.split(uri)
    try:
        with s3.Stream(bucket, key, unless=unless) as stream:
            _check_size(stream.size, max_bytes)
            return stream.read(), stream.etag
    except s3.Failure as error:
        code = s3.code(error)
        if code == "NotModified":
            return None
        if code == "NoSuchKey":
            raise SourceError("unreadable", "no such object") from None
        if code == "InvalidObjectState":
            raise SourceError("unreadable", "archived; restore it first") from None
        raise s3.store_error(error, uri) from error


def _fetch_http(uri: str, unless: str | None, max_bytes: int | None) -> tuple[bytes, str] | None:
    _check_no_secret(uri)
    condition = "If-None-Match" if unless and unless.endswith('"') else "If-Modified-Since"
    headers = {condition: unless} if unless else {}
    for attempt in range(TRIES):
        try:
            answer = _pool(os.getpid()).request("GET", uri, headers=headers, preload_content=False)
            try:
                if answer.status == 304:
                    return None
                if answer.status != 200:
                    raise SourceError("unreadable", f"the server answered {answer.status}")
                _check_size(int(answer.headers.get("Content-Length", 0)), max_bytes)
                data = _body(answer, max_bytes)
            finally:
                answer.close()
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            return data, tag
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            if attempt == TRIES - 1 or isinstance(error, urllib3.exceptions.MaxRetryError):
                cause = getattr(error, "reason", None) or error
                kind = type(cause).__name__.removesuffix("Error")
                raise SourceError("unreadable", f"no answer from its server ({kind})") from None
    raise AssertionError("unreachable")


def _body(answer: urllib3.BaseHTTPResponse, max_bytes: int | None) -> bytes:
    pieces, size = [], 0
    for piece in answer.stream(_PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        _check_size(size, max_bytes)
    return b"".join(pieces)


def _check_size(size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise SourceError("too large", f"{size:,} bytes, at most {max_bytes:,}")


def _check_no_secret(uri: str) -> None:
    """A catalog keeps every URL and is read by everybody; and a signed one would expire."""
    parts = urlsplit(uri)
    names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if "@" in parts.netloc or any(word in name for name in names for word in _SECRET_WORDS):
        raise SourceError(
            SIGNED,
            f"{without_secrets(uri)} carries credentials, expected a public one or s3://bucket/key",
        )


@functools.lru_cache(maxsize=1)
def _pool(_pid: int) -> urllib3.PoolManager:
    """One per process: a fork shares no connection with its parent."""
    waits = Retry(
        total=TRIES,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        raise_on_status=False,
    )
    return urllib3.PoolManager(
        maxsize=32,
        retries=waits,
        timeout=Timeout(connect=10, read=30),
        headers={"User-Agent": "tarpon"},
    )
