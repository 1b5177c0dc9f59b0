"""Places of shards as text: local paths, s3:// and http(s):// URLs. Looks nothing up.

A place is a local path, ``s3://bucket/key`` with the key as it is (nothing in it is escaped), or
an http(s) URL as it is written, which may hold a signature or a password: `shown` leaves them out.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from tarpon.errors import StoreError

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOST_SLASH = re.compile(r"(s3|https?):/(?!/)")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
# What may stand in a URL as it is; "%" too, so that what is escaped is not escaped twice.
_SAFE = "%:/?#[]@!$&'()*+,;=~"


def place(text: str) -> str:
    """What a person or a list wrote, as a place.

    Raises:
        StoreError: A scheme that is not supported, or a URL that is none.
    """
    if text.startswith("file:"):
        return urlsplit(text).path
    if text.startswith("pipe:"):
        raise StoreError(
            "pipe: commands are not supported, expected local files, s3:// or http(s)://"
        )
    if lost := _LOST_SLASH.match(text):
        raise StoreError(
            f"{lost[0]}: one slash, expected {lost[1]}://; a Path loses one, pass a str"
        )
    match = SCHEME.match(text)
    if match is None:
        return text
    scheme, rest = match[1].lower(), text[match.end() :]
    if scheme == "s3":
        _check_s3(rest)
        return f"s3://{rest}"
    if scheme in ("http", "https"):
        return _checked_http(scheme, rest)
    raise StoreError(
        f"{shown(text)}: {scheme}:// is not supported, expected local files, s3:// or http(s)://; "
        "copy the shards to one of these, or use the store's own S3 or https address"
    )


def is_s3(place: str) -> bool:
    return place.startswith("s3://")


def is_http(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def is_remote(place: str) -> bool:
    return is_s3(place) or is_http(place)


def bucket_and_key(place: str) -> tuple[str, str]:
    """Of an s3 place; the key may be empty."""
    bucket, _, key = place.removeprefix("s3://").partition("/")
    return bucket, key


def shown(text: str) -> str:
    """A place as errors, logs and `Dataset.shards` show it: no user, password, query, fragment.

    Takes any text with a scheme; an s3 key has no query, a "?" is part of it.
    """
    match = SCHEME.match(text)
    if match is None:
        return text
    scheme, rest = match[1].lower(), text[match.end() :]
    if scheme != "s3":
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def file_name(place: str) -> str:
    """The last part of a place, the same for one file wherever it lies."""
    last = Path(shown(place)).name
    return unquote(last) if is_http(place) else last


def path_of(place: str) -> str:
    """What says of which kind a file is: for http(s) the URL's path."""
    return urlsplit(place).path if is_http(place) else place


def parent(place: str) -> str:
    """The folder that a file lies in: what its list's relative URLs are relative to."""
    if is_s3(place):
        bucket, key = bucket_and_key(place)
        return f"s3://{bucket}/{key[: key.rfind('/') + 1]}"
    if is_http(place):
        parts = urlsplit(place)
        folder = parts.path[: parts.path.rfind("/") + 1]
        return parts._replace(path=folder, query="", fragment="").geturl()  # they are one file's
    return str(Path(place).parent)


def join(folder: str, text: str) -> str:
    """`text` as a shard list in `folder` means it: relative to that, or a place of its own.

    Raises:
        StoreError: As `place`; or it climbs out of the bucket.
    """
    there = place(text)
    if is_remote(there) or text.startswith("file:"):
        return there
    if is_http(folder):
        base = urlsplit(folder)._replace(query="", fragment="").geturl().rstrip("/") + "/"
        relative = quote(there, safe=_SAFE)
        return urljoin(base, relative if relative.startswith("/") else f"./{relative}")
    if is_s3(folder):
        return there if there.startswith("/") else _join_key(folder, there)
    return str(Path(folder) / there)


def _join_key(folder: str, relative: str) -> str:
    """Keys have no dot segments: resolved here, as a file system would."""
    bucket, key = bucket_and_key(folder)
    parts = key.removesuffix("/").split("/") if key else []
    for part in relative.split("/"):
        if part == ".." and not parts:
            raise StoreError(f"{folder}: {relative!r} leaves the bucket; correct the shard list")
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return f"s3://{bucket}/{'/'.join(parts)}"


def _check_s3(rest: str) -> None:
    bucket = rest.partition("/")[0]
    if "@" in bucket:
        raise StoreError(
            "s3://...@...: credentials in a URL, expected s3://bucket/key; they come from the "
            "environment or a profile, see tarpon.Store"
        )
    if not _BUCKET.fullmatch(bucket):
        raise StoreError(
            f"s3://{bucket}: not the name of a bucket, expected s3://bucket/key; for an access "
            "point use its alias"
        )


def _checked_http(scheme: str, rest: str) -> str:
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    url = f"{scheme}://{host}{quote(rest[len(host) :], safe=_SAFE)}"
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname)
        _ = parts.port  # raises
    except ValueError:
        good = False
    if not good:  # not shown: what would be its host may be part of a password
        raise StoreError(f"{scheme}://...: not a URL, expected such as https://host/folder/a.tar")
    return url
