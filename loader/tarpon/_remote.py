"""Reads small files over the network: shard lists. Never tars, which the core reads."""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.error
import urllib.request

from tarpon import _s3
from tarpon._s3_errors import refused
from tarpon._url import is_s3, shown
from tarpon.errors import StoreError
from tarpon.store import Store

_TIMEOUT_S = 60
_CODE = re.compile(rb"<Code>([A-Za-z0-9_.-]{1,64})</Code>")
_REGION = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")


def read(url: str, store: Store | None, most_bytes: int) -> bytes:
    """The whole of a file at an s3 or http(s) place, on the calling thread.

    Raises:
        StoreError: Not there, not to be reached, or more than `most_bytes`.
    """
    if not is_s3(url):
        try:
            return _get(url, url, store, most_bytes)
        except urllib.error.HTTPError as error:
            raise _refusal(url, error.code, None) from None
    s3 = _s3.of(store)
    for last in (False, True):
        try:
            return _get(url, s3.sign(url)[0], store, most_bytes)
        except urllib.error.HTTPError as error:
            body = error.read(4096)
            found = _REGION.search(body)
            region = error.headers.get("x-amz-bucket-region") or (found and found[1].decode())
            if last or error.code not in (301, 307, 400, 403):
                code = _CODE.search(body)
                raise _refusal(url, error.code, code[1].decode() if code else None) from None
            if not (region and s3.region_hint(url, region)):
                s3.renew()
    raise AssertionError("the last try returns or raises")


def _get(url: str, full: str, store: Store | None, most_bytes: int) -> bytes:
    """`full` has the query that is not to be shown."""
    context = None
    try:
        if store is not None and store.ca_bundle is not None:
            context = ssl.create_default_context(cafile=store.ca_bundle)
        with urllib.request.urlopen(full, timeout=_TIMEOUT_S, context=context) as answer:
            data: bytes = answer.read(most_bytes + 1)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        if isinstance(reason, OSError):
            reason = reason.strerror or type(reason).__name__
        raise StoreError(
            f"{shown(url)}: no answer ({reason}), expected a shard list; check the host and the "
            "network"
        ) from None
    if len(data) > most_bytes:
        raise StoreError(
            f"{shown(url)}: more than {most_bytes} bytes, expected a shard list; check the name"
        )
    return data


def _refusal(url: str, status: int, code: str | None) -> StoreError:
    where = shown(url)
    if status == 404 and code in (None, "NoSuchKey"):
        return StoreError(
            f"{where}: no such file (HTTP 404), expected a shard list; was the version published?"
        )
    if is_s3(url):
        return refused(where, status, code)
    if status in (401, 403):
        return StoreError(
            f"{where}: access denied (HTTP {status}), expected a URL that may be read; if it is "
            "a signed one, it may have expired"
        )
    return StoreError(f"{where}: the server answered {status}, expected the file; check the URL")
