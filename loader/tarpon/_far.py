"""Finds tars over the network: one, a pattern, a shard list; in S3 also what a prefix holds."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from tarpon._lists import far_shard, read_shard_list
from tarpon._names import (
    GLOB,
    Shard,
    checked_url,
    compressed_ending,
    expand_braces,
    scheme_of,
    without_secrets,
)
from tarpon.errors import StoreError
from tarpon.store import Store


def resolve(text: str, store: Store | None) -> list[Shard]:
    """The tars that an ``s3://`` or ``http(s)://`` URL or pattern names, in order.

    An ``http(s)://`` URL is taken as it is written, its query too, where a signature may stand; of
    ``s3://`` everything after the bucket is the key, in which ``*``, ``?`` and ``[`` are a pattern.
    """
    if scheme_of(text) == "s3":
        from tarpon._s3 import split

        url = _lower_scheme(text)
        split(url)  # raises
        return _in_bucket(url, store)
    text = checked_url(text)
    path, mark, query = _cut_query(text)
    if "{" in path:
        return [far_shard(one + mark + query) for one in expand_braces(path)]
    below = path.split("://", 1)[1].partition("/")[2]  # brackets before that are of an address
    if not below or below.endswith("/") or GLOB.search(below):
        raise StoreError(
            f"{without_secrets(text)}: {scheme_of(text)}:// cannot be listed, expected a tar, a "
            "shard list (train.json) or a pattern such as train-{000000..000127}.tar"
        )
    return _named(text, store)


def _lower_scheme(text: str) -> str:
    return "s3://" + text[len("s3://") :]


def _cut_query(text: str) -> tuple[str, str, str]:
    found = re.search(r"[?#]", text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def _named(url: str, store: Store | None) -> list[Shard]:
    if _cut_query(url)[0].endswith(".json"):
        return read_shard_list(url, store)
    return [far_shard(url)]


# ---- S3 ------------------------------------------------------------------------------------------


def _in_bucket(url: str, store: Store | None) -> list[Shard]:
    if "{" in url:
        paths = expand_braces(url)
        if GLOB.search(url):
            return [shard for path in paths for shard in _in_bucket(path, store)]
        return [far_shard(path) for path in paths]
    if GLOB.search(url):
        return _matching(url, store)
    if url.endswith(".json"):
        return read_shard_list(url, store)
    if url.endswith(".tar") or compressed_ending(url):
        return [far_shard(url)]
    return _in_folder(url.rstrip("/") + "/" if url.count("/") > 2 else url + "/", store)


def _in_folder(folder: str, store: Store | None) -> list[Shard]:
    """Every tar right below a prefix but hidden ones; or the tar that has another ending."""
    found = _list(folder, store, deep=False)
    if not found:
        itself = folder.removesuffix("/")
        if one := [item for item in _list(itself, store, deep=False) if item.path == itself]:
            return one
    names = {item.path for item in found}
    for name in sorted(names):
        ending = compressed_ending(name)
        if ending and name.removesuffix(ending) + ".tar" not in names:
            far_shard(name)  # raises
    tars = [item for item in found if _is_tar(item.path)]
    if not tars:
        raise StoreError(f"{folder}: a prefix without *.tar, expected at least one tar")
    return tars


def _is_tar(path: str) -> bool:
    return path.endswith(".tar") and not path.rpartition("/")[2].startswith(".")


def _matching(pattern: str, store: Store | None) -> list[Shard]:
    """Tars and shard lists that match, segment by segment, as files do in a shell."""
    literal = GLOB.split(pattern)[0]
    wanted = pattern.split("/")
    rest = pattern.removeprefix(literal)
    listed = _list(literal, store, deep="/" in rest or "**" in rest)
    found = [item for item in listed if item.path == pattern]  # a name that looks like a pattern
    found = found or [item for item in listed if _matches(wanted, item.path.split("/"))]
    if not found:
        raise StoreError(f"{pattern}: matches no object, expected at least one tar")
    found.sort(key=lambda item: item.path.split("/"))  # as files in folders: "x/1" before "x-y/1"
    shards: list[Shard] = []
    for item in found:
        if item.path.endswith(".json"):
            shards += read_shard_list(item.path, store)
        else:
            shards.append(far_shard(item.path, bytes=item.bytes, etag=item.etag))
    return shards


def _list(prefix: str, store: Store | None, *, deep: bool) -> list[Shard]:
    from tarpon._s3 import S3

    return [
        Shard(path=item.url, bytes=item.bytes, etag=item.etag or None)
        for item in S3.of(store).list(prefix, deep=deep)
    ]


def _matches(pattern: list[str], path: list[str]) -> bool:
    """Segment by segment; no hidden names, and ``**`` for any number of segments."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        deepest = next((n for n, name in enumerate(path) if name.startswith(".")), len(path))
        return any(_matches(pattern[1:], path[skipped:]) for skipped in range(deepest + 1))
    if not path or not fnmatchcase(path[0], pattern[0]):
        return False
    hidden = path[0].startswith(".") and not pattern[0].startswith(".")
    return not hidden and _matches(pattern[1:], path[1:])
