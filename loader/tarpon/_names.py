"""What a shard is, and the patterns people write for many of them. Text alone; reads nothing."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tarpon.errors import CorruptShardError, StoreError

GLOB = re.compile(r"[*?[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_REMOTE = ("s3", "http", "https")
# What a URL may hold as it is; "%", so that nothing is escaped twice, and the braces of patterns.
_SAFE = "%:/?#[]@!$&'()*+,;=~{}"
# How a compressed tar is named, and what makes a plain one of it.
_COMPRESSED = {
    ".tar.gz": "gunzip",
    ".tgz": "gunzip",
    ".tar.bz2": "bunzip2",
    ".tbz2": "bunzip2",
    ".tbz": "bunzip2",
    ".tar.xz": "unxz",
    ".txz": "unxz",
    ".tar.zst": "unzstd",
    ".tzst": "unzstd",
    ".tar.lz4": "unlz4",
}
_MOST_SHARDS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tar, and what a shard list or a listing promised of it: -1 and ``None`` where none did.

    Attributes:
        path: Of a local file; of a remote one its URL without query and user, for messages.
        url: The whole URL of an ``http(s)://`` tar, which may hold a signature; else ``None``.
    """

    path: str
    samples: int = -1
    bytes: int = -1
    md5sum: str | None = None
    sha256: str | None = None
    etag: str | None = None
    url: str | None = field(default=None, repr=False)

    @property
    def is_remote(self) -> bool:
        return is_remote(self.path)


def plain(path: str, **promised: Any) -> Shard:
    """A shard, unless its name says that it is compressed; the core looks at the bytes too."""
    ending = compressed_ending(path)
    if ending:
        better = path.removesuffix(ending) + ".tar"
        raise CorruptShardError(
            f"{path}: a compressed tar, expected a plain one, whose samples can be read one by "
            f"one; rewrite it with `{_COMPRESSED[ending]} < {shlex.quote(path)} > "
            f"{shlex.quote(better)}`"
        )
    return Shard(path=path, **promised)


def compressed_ending(path: str) -> str | None:
    return next((ending for ending in _COMPRESSED if path.endswith(ending)), None)


def scheme_of(text: str) -> str:
    """``s3``, ``http`` ... of a URL, or nothing."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    return found[1].lower() if found else ""


def is_remote(text: str) -> bool:
    """Whether it is read over a network."""
    return scheme_of(text) in _REMOTE


def without_secrets(text: str) -> str:
    """A URL fit for a message: no query, where signatures stand, and no user and password.

    Of ``s3://``, everything behind the bucket is the key.
    """
    if scheme_of(text) == "s3":
        return re.sub(r"(://)[^/]*@", r"\1", text, count=1)
    if scheme_of(text) in ("", "file"):
        return text
    return re.sub(r"(://)(?:[^/?#]*@)?([^?#]*).*", r"\1\2", text, flags=re.DOTALL)


def file_name(shown: str) -> str:
    """The last part of a path or URL without secrets: the same wherever the file lies."""
    name = Path(shown).name
    return unquote(name) if scheme_of(shown) in ("http", "https") else name


def checked_url(text: str) -> str:
    """An ``http(s)://`` URL fit for a request: as it is written, but for what no URL may hold.

    Raises:
        StoreError: It is none.
    """
    scheme = scheme_of(text)
    host, rest = _cut_host(text)
    try:
        parts = urlsplit(f"{scheme}://{host}")
        good = bool(parts.hostname)
        _ = parts.port  # raises
    except ValueError:
        good = "{" in host
    if not good:  # not shown: what would be its port may be part of a password
        raise StoreError(f"{scheme}://...: not a URL, expected such as https://host/folder/a.tar")
    return f"{scheme}://{host}{quote(rest, safe=_SAFE)}"


def checked_relative(text: str) -> str:
    """A relative URL as a shard list has it, with what no URL may hold escaped."""
    text = quote(text, safe=_SAFE)
    return text if text.startswith("/") else f"./{text}"  # else "a:b.tar" had a scheme


def _cut_host(url: str) -> tuple[str, str]:
    rest = url.partition("://")[2]
    found = re.search(r"[/?#]", rest)
    return (rest[: found.start()], rest[found.start() :]) if found else (rest, "")


def local_path(text: str) -> str:
    """The path behind a plain path or a ``file://`` URL."""
    scheme = scheme_of(text)
    if scheme == "file":
        return urlsplit(text).path
    if scheme:
        raise StoreError(
            f"{without_secrets(text)}: {scheme}:// is not supported, expected a local path, "
            "s3://, https:// or http://; copy the shards to one of them"
        )
    if lost := re.match(r"(s3|https?):/", text):
        raise StoreError(
            f"{lost[0]}: one slash, expected {lost[1]}://; a Path loses one, pass a str"
        )
    if text.startswith("pipe:"):
        raise StoreError(
            "pipe: commands are not supported, expected a path or a URL; write the URL instead"
        )
    return text


def _alternatives(body: str) -> list[str]:
    numbers = _NUMBERS.fullmatch(body)
    if numbers is None and ".." in body:
        raise StoreError(f"{{{body}}}: expected a range of numbers such as {{0000..0127}}")
    if numbers is None:
        return body.split(",")
    low, high = numbers.groups()
    if int(high) < int(low) or int(high) - int(low) >= _MOST_SHARDS:
        raise StoreError(f"{{{body}}}: expected a rising range of at most {_MOST_SHARDS} shards")
    padded = any(end.startswith("0") and len(end) > 1 for end in (low, high))
    width = max(len(low), len(high)) if padded else 0
    return [str(number).zfill(width) for number in range(int(low), int(high) + 1)]


def expand_braces(text: str) -> list[str]:
    """``a-{0..1}-{x,y}.tar`` to four paths; no nesting."""
    pieces = _BRACES.split(text)  # text, body, text, body, ..., text
    if any("{" in piece or "}" in piece for piece in pieces):
        raise StoreError(
            f"{without_secrets(text)}: unbalanced or nested braces, expected such as {{0000..0127}}"
        )
    choices = [
        _alternatives(piece) if number % 2 else [piece] for number, piece in enumerate(pieces)
    ]
    return ["".join(combination) for combination in product(*choices)]
