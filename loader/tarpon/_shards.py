"""Turns what a person writes for `shards` into a list of tars. Reads shard lists, never tars."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tarpon import _remote, _s3
from tarpon._patterns import expand_braces, is_glob, literal_prefix, matches
from tarpon._s3 import Found
from tarpon._url import (
    SCHEME,
    bucket_and_key,
    is_http,
    is_remote,
    join,
    parent,
    path_of,
    place,
    shown,
)
from tarpon.errors import CorruptShardError, StoreError, TarponError
from tarpon.store import Store

Shards = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

# Between parts, not within the address of http://[2001:db8::1]/a.tar.
_PARTS = re.compile(r"::(?![0-9A-Fa-f:.]*\])")
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
_MOST_LIST_BYTES = 1 << 30
"""Of a shard list over the network: about seven million shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tar, and what a listing or a shard list promised of it: -1 and ``None`` where none did.

    `path` is a local path, ``s3://bucket/key`` with the key as it is, or an http(s) URL without
    user, password and query: it may be shown. `url` is what to request of http(s): a secret.
    `etag` is as in HTTP, in double quotes.
    """

    path: str
    url: str | None = field(default=None, repr=False)
    samples: int = -1
    bytes: int = -1
    etag: str | None = None
    md5sum: str | None = None
    sha256: str | None = None


def resolve(shards: Shards, store: Store | None = None) -> list[Shard]:
    """The tars that `shards` names, in order.

    Takes a tar, a shard list (``train.json``), a folder (every ``*.tar`` in it, sorted), a glob,
    a brace pattern (``train-{000000..000127}.tar``), a list of any of these, or several joined
    by ``::``. All may be local or ``s3://``; of ``http(s)://`` tars, brace patterns and shard
    lists. Folders and globs of S3 cost a listing, shard lists one GET each; a tar named outright
    is not looked for.

    Raises:
        StoreError: Nothing there, not to be reached, or a scheme that is not supported.
        CorruptShardError: A shard list that is not one.
    """
    if shards == "" or not isinstance(shards, str | os.PathLike | Iterable):
        raise ValueError(f"shards={shards!r}, expected a path, a pattern or a list of them")
    if isinstance(shards, str | os.PathLike):
        parts = _PARTS.split(os.fspath(shards))
        found = [shard for part in parts for shard in _resolve_one(part, store)]
    else:
        shards = list(shards)
        found = [shard for part in shards for shard in resolve(part, store)]
    if not found:
        raise StoreError(f"shards={named(shards)}: names no tar, expected at least one")
    return found


def named(shards: Shards) -> str:
    """What was written for `shards`, as it may be shown."""
    if isinstance(shards, str | os.PathLike):
        return repr("::".join(map(shown, _PARTS.split(os.fspath(shards)))))
    return f"[{', '.join(map(named, shards))}]"


def _resolve_one(text: str, store: Store | None) -> list[Shard]:
    if not text:
        raise StoreError("shards: an empty path, expected a tar, a shard list or a folder")
    try:
        if "{" in text and SCHEME.match(text) and not text.startswith("file:"):
            paths = map(place, expand_braces(text))
            return [shard for path in paths for shard in _look_up_remote(path, store, many=True)]
        where = place(text)
        return _look_up_remote(where, store) if is_remote(where) else _look_up(where, store)
    except TarponError:
        raise
    except OSError as error:  # no permission, a name too long, ...
        raise StoreError(
            f"{shown(text)}: {error.strerror or error}, expected a tar, a shard list or a folder; "
            "check the path and its permissions"
        ) from error


def _look_up(text: str, store: Store | None) -> list[Shard]:
    if "{" in text and not os.path.exists(text):  # which takes a text of any length
        paths = expand_braces(text)
        if is_glob(text):
            return [shard for path in paths for shard in _look_up(path, store)]
        return [shard for path in paths for shard in _tar_or_list(path, store)]
    path = Path(text)
    if path.is_dir():
        return _in_folder(path, store)
    if is_glob(text) and not path.exists():
        found = map(Path, glob.glob(text, recursive=True))  # as in a shell, no hidden ones
        return _as_shards(found, f"{text}: matches no file", store)
    found_shards = _tar_or_list(text, store)
    if not path.exists():
        raise StoreError(f"{text}: no such file or folder, expected a tar or a shard list")
    return found_shards


def _look_up_remote(where: str, store: Store | None, *, many: bool = False) -> list[Shard]:
    """`many`: it is one of a pattern's, and not worth a request to see whether it is a folder."""
    if is_http(where):
        path = path_of(where)
        if is_glob(path) or path in ("", "/") or path.endswith("/"):
            raise StoreError(
                f"{shown(where)}: a folder or glob, which http cannot list, expected a tar or a "
                "shard list; name the tars by braces ({0000..0127}) or by a train.json"
            )
        return _tar_or_list(where, store)
    key = bucket_and_key(where)[1]
    if is_glob(key):
        return _s3_glob(where, store)
    if not key or key.endswith("/"):
        return _s3_folder(where, store)
    if many or key.endswith((".tar", ".json")) or _compressed_ending(key):
        return _tar_or_list(where, store)
    found = _s3.of(store).below(f"{where}/", deep=False)
    if found:
        return _s3_folder(f"{where}/", store, found)
    found = [each for each in _s3.of(store).below(where, deep=False) if each.url == where]
    if not found:
        raise StoreError(f"{where}: no such object or folder, expected a tar or a shard list")
    return [_of(each) for each in found]


def _s3_folder(where: str, store: Store | None, found: list[Found] | None = None) -> list[Shard]:
    """Every tar right below `where`, which is a bucket or ends in a slash."""
    folder = where if bucket_and_key(where)[1] else f"{where.rstrip('/')}/"
    if found is None:
        found = _s3.of(store).below(folder, deep=False)
    by_name = {each.url.removeprefix(folder): each for each in found}
    names = _tars_among(by_name, folder)
    if not names:
        raise StoreError(f"{folder}: a folder without *.tar, expected at least one tar")
    return [_of(by_name[name]) for name in names]


def _s3_glob(where: str, store: Store | None) -> list[Shard]:
    """As `glob.glob` and in the same order, or the one object whose name looks like a pattern."""
    pattern = bucket_and_key(where)[1]
    prefix = literal_prefix(where)
    listed = _s3.of(store).below(prefix, deep="/" in where.removeprefix(prefix))
    found = [each for each in listed if each.url == where] or [
        each for each in listed if matches(pattern, bucket_and_key(each.url)[1])
    ]
    if not found:
        raise StoreError(f"{where}: matches no object, expected at least one tar")
    found.sort(key=lambda each: each.url.split("/"))
    return [
        shard
        for each in found
        for shard in (_read_shard_list(each.url, store) if _is_list(each.url) else [_of(each)])
    ]


def _of(found: Found) -> Shard:
    return _plain(found.url, bytes=found.bytes, etag=found.etag)


def _is_list(where: str) -> bool:
    return Path(path_of(where)).suffix == ".json"


def _tar_or_list(where: str, store: Store | None) -> list[Shard]:
    return _read_shard_list(where, store) if _is_list(where) else [_plain(where)]


def _plain(where: str, **promised: Any) -> Shard:
    """A shard, unless its name says that it is compressed; the core looks at the bytes too."""
    ending, path = _compressed_ending(path_of(where)), shown(where)
    if ending:
        plain = path.removesuffix(ending) + ".tar"
        command = f"{_COMPRESSED[ending]} < {shlex.quote(path)} > {shlex.quote(plain)}"
        if is_remote(where):
            command = f"{_COMPRESSED[ending]} < COPY > {shlex.quote(Path(plain).name)}"
        raise CorruptShardError(
            f"{path}: a compressed tar, expected a plain one, whose samples can be read one by "
            f"one; rewrite it with `{command}`"
        )
    return Shard(path=path, url=where if is_http(where) else None, **promised)


def _compressed_ending(path: str) -> str | None:
    return next((ending for ending in _COMPRESSED if path.endswith(ending)), None)


def _in_folder(folder: Path, store: Store | None) -> list[Shard]:
    """Every tar of a folder but hidden ones."""
    tars = [folder / name for name in _tars_among(os.listdir(folder), f"{folder}/")]
    return _as_shards(tars, f"{folder}: a folder without *.tar", store)


def _tars_among(files: Iterable[str], folder: str) -> list[str]:
    """A compressed tar is no reason to leave it out, unless its plain one is there."""
    names = sorted(name for name in files if not name.startswith("."))
    there = set(names)
    for name in names:
        ending = _compressed_ending(name)
        if ending and name.removesuffix(ending) + ".tar" not in there:
            _plain(folder + name)  # raises
    return [name for name in names if name.endswith(".tar")]


def _as_shards(paths: Iterable[Path], otherwise: str, store: Store | None) -> list[Shard]:
    """Each file as a tar, or as the shard list it is; in the order of their names.

    A link that leads nowhere is among them: left out, its samples would be missed by nobody.
    """
    files = sorted(path for path in paths if not path.is_dir())
    if not files:
        raise StoreError(f"{otherwise}, expected at least one tar")
    return [shard for path in files for shard in _tar_or_list(str(path), store)]


def _read_shard_list(where: str, store: Store | None, *, within: str | None = None) -> list[Shard]:
    """The tars of a wids shard list, and of the datasets it names, one after the other.

    URLs are relative to `base`, and that to the list. `within` is the list that names this one.
    """
    path, document = shown(where), _load(where, store)
    own, datasets = document.get("shardlist"), document.get("datasets", [])
    if not isinstance(own, list) and not (own is None and datasets):
        raise CorruptShardError(
            f"{path}: no 'shardlist', expected a wids shard list such as the shard step writes"
        )
    if within and datasets:
        raise CorruptShardError(
            f"{path}: has 'datasets', expected a plain shard list, as {within} names it"
        )
    folder = _base(path, document, parent(where))
    shards = [_entry(path, folder, number, entry) for number, entry in enumerate(own or [])]
    if not isinstance(datasets, list):
        raise CorruptShardError(f"{path}: 'datasets' is {datasets!r}, expected a list of them")
    for number, dataset in enumerate(datasets):
        shards += _dataset(path, folder, number, dataset, store)
    return shards


def _load(where: str, store: Store | None) -> dict[str, Any]:
    path = shown(where)
    try:
        if is_remote(where):
            document = json.loads(_remote.read(where, store, _MOST_LIST_BYTES))
        else:
            document = json.loads(Path(where).read_bytes())
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error}, expected a shard list; was the version published?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorruptShardError(f"{path}: not JSON ({error}), expected a shard list") from error
    return document if isinstance(document, dict) else {}


def _base(path: str, document: dict[str, Any], folder: str) -> str:
    base = document.get("base") or ""
    if not isinstance(base, str):
        raise CorruptShardError(f"{path}: 'base' is {base!r}, expected a path or a URL")
    return join(folder, base) if base else folder


def _dataset(path: str, folder: str, number: int, dataset: Any, store: Store | None) -> list[Shard]:
    """One of a list's 'datasets': a shard list in place, or the place of one."""
    fields: dict[str, Any] = dataset if isinstance(dataset, dict) else {}
    source, entries = fields.get("source_url"), fields.get("shardlist")
    if isinstance(source, str):
        return _read_shard_list(join(folder, source), store, within=path)
    if not isinstance(entries, list):
        raise CorruptShardError(
            f"{path}: dataset {number} is {str(dataset)[:200]}, expected an object with "
            "'shardlist' or 'source_url'"
        )
    folder = _base(path, fields, folder)
    return [_entry(path, folder, at, entry) for at, entry in enumerate(entries)]


def _entry(path: str, folder: str, number: int, entry: Any) -> Shard:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    url, samples, size = fields.get("url"), fields.get("nsamples"), fields.get("filesize", -1)
    if not (
        isinstance(url, str)
        and url
        and type(samples) is int  # a bool is none
        and type(size) is int
        and 0 <= samples <= 2**62
        and -1 <= size < 2**63
    ):
        if isinstance(url, str):
            entry = fields | {"url": shown(url)}  # it may be a signed one
        raise CorruptShardError(
            f"{path}: shard {number} is {entry!r}, expected an object with 'url' and 'nsamples'"
        )
    return _plain(
        join(folder, url),
        samples=samples,
        bytes=size,
        etag=_etag(fields.get("etag")),
        md5sum=fields.get("md5sum"),
        sha256=fields.get("sha256"),
    )


def _etag(value: Any) -> str | None:
    """In quotes, as HTTP has it; lists are written with and without."""
    if not isinstance(value, str) or not value:
        return None
    return value if '"' in value else f'"{value}"'
