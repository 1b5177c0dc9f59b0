"""Reads wids shard lists, such as ``train.json``: from disk, or over the network."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from tarpon._names import (
    Shard,
    checked_relative,
    checked_url,
    is_remote,
    local_path,
    plain,
    scheme_of,
    without_secrets,
)
from tarpon.errors import CorruptShardError, StoreError
from tarpon.store import Store

_MOST_BYTES = 1 << 30


def read_shard_list(path: str, store: Store | None, *, within: str | None = None) -> list[Shard]:
    """The tars of a wids shard list, and of the datasets it names, one after the other.

    URLs are relative to `base`, and that to the list. `within` is the list that names this one.
    """
    shown = without_secrets(path)
    document = _load(path, store)
    own, datasets = document.get("shardlist"), document.get("datasets", [])
    if not isinstance(own, list) and not (own is None and datasets):
        raise CorruptShardError(
            f"{shown}: no 'shardlist', expected a wids shard list such as the shard step writes"
        )
    if within and datasets:
        raise CorruptShardError(
            f"{shown}: has 'datasets', expected a plain shard list, as {within} names it"
        )
    base = _base(shown, document, path)
    shards = [_entry(shown, base, number, entry) for number, entry in enumerate(own or [])]
    if not isinstance(datasets, list):
        raise CorruptShardError(
            f"{shown}: 'datasets' is {_told(datasets)}, expected a list of them"
        )
    for number, dataset in enumerate(datasets):
        shards += _dataset(shown, base, number, dataset, store)
    return shards


def far_shard(url: str, **promised: Any) -> Shard:
    """A remote tar."""
    return plain(without_secrets(url), url=None if scheme_of(url) == "s3" else url, **promised)


def _load(path: str, store: Store | None) -> dict[str, Any]:
    shown = without_secrets(path)
    try:
        if is_remote(path):
            from tarpon import _remote

            document = json.loads(_remote.read(path, store, _MOST_BYTES))
        else:
            document = json.loads(Path(path).read_bytes())
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"{shown}: {error.strerror or error}, expected a shard list; was the version published?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorruptShardError(f"{shown}: not JSON ({error}), expected a shard list") from error
    return document if isinstance(document, dict) else {}


def _join(base: str, url: str) -> str:
    """`url` as the list or the folder at `base` means it; a folder ends with a slash.

    Raises:
        StoreError: A scheme that is not supported; or it climbs out of the bucket.
    """
    if scheme_of(url) == "s3":
        return url
    if is_remote(url):
        return checked_url(url)
    path, slash = local_path(url), "/" if url.endswith("/") else ""
    if scheme_of(url) == "file":
        return path
    if scheme_of(base) == "s3":
        return _join_key(base, path)
    if is_remote(base):
        return urljoin(base, checked_relative(path))
    folder = Path(base if base.endswith("/") else posixpath.dirname(base))
    return f"{folder / path}{slash}"


def _join_key(base: str, path: str) -> str:
    """Keys have no dot segments: resolved here, as a file system would."""
    bucket, _, key = base.removeprefix("s3://").partition("/")
    parts = [] if path.startswith("/") else key.split("/")[:-1]
    for part in path.removeprefix("/").split("/"):
        if part == ".." and not parts:
            raise StoreError(f"{base}: {path!r} leaves the bucket; correct the shard list")
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return f"s3://{bucket}/{'/'.join(parts)}"


def _base(shown: str, document: dict[str, Any], base: str) -> str:
    told = document.get("base") or ""
    if not isinstance(told, str):
        raise CorruptShardError(f"{shown}: 'base' is {_told(told)}, expected a path or a URL")
    return _join(base, told.rstrip("/") + "/") if told else base


def _dataset(shown: str, base: str, number: int, dataset: Any, store: Store | None) -> list[Shard]:
    """One of a list's 'datasets': a shard list in place, or the place of one."""
    fields: dict[str, Any] = dataset if isinstance(dataset, dict) else {}
    source, entries = fields.get("source_url"), fields.get("shardlist")
    if isinstance(source, str):
        return read_shard_list(_join(base, source), store, within=shown)
    if not isinstance(entries, list):
        raise CorruptShardError(
            f"{shown}: dataset {number} is {_told(dataset)[:200]}, expected an object with "
            "'shardlist' or 'source_url'"
        )
    base = _base(shown, fields, base)
    return [_entry(shown, base, at, entry) for at, entry in enumerate(entries)]


def _entry(shown: str, base: str, number: int, entry: Any) -> Shard:
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
        raise CorruptShardError(
            f"{shown}: shard {number} is {_told(entry)}, expected an object with 'url' and "
            "'nsamples'"
        )
    promised: dict[str, Any] = {
        "samples": samples,
        "bytes": size,
        "md5sum": fields.get("md5sum"),
        "sha256": fields.get("sha256"),
    }
    joined = _join(base, url)
    if not is_remote(joined):
        return plain(joined, **promised)
    etag = fields.get("etag")
    return far_shard(joined, etag=etag if isinstance(etag, str) and etag else None, **promised)


def _told(value: Any) -> str:
    """As it stands there; URLs, wherever they are, without what may be a signature."""
    return repr(_without_secrets(value))


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items()}
    return value
