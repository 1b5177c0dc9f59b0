"""Writes indexes beside tars, and shard lists of them; the only files that the loader makes.

Remote tars are never written to: their lists lie on this machine, with whole URLs.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tarpon import _core
from tarpon._names import Shard, is_remote
from tarpon._shards import Shards, resolve
from tarpon.dataset import Dataset, Reach
from tarpon.errors import StoreError

_COUNTED_AT_ONCE = 96  # twice what the core counts at once


def index(shards: Shards, *, force: bool = False) -> list[Path]:
    """Write DALI's ``.idx`` beside each tar that has none, from one pass over its headers.

    Args:
        shards: Anything `open` takes.
        force: Also replace the indexes that are there.

    Returns:
        The index files written, in order.

    Raises:
        CorruptShardError: Not a plain tar, or a name with white space, which the format cannot
            hold. Nothing is written for that shard.
        StoreError: The folder cannot be written; or a shard is remote, and nothing was written.
    """
    written = []
    found = resolve(shards)
    for shard in found:
        refuse_remote(shard)
    for shard in found:
        path = sidecar(shard.path)
        if force or not path.exists():
            write_sidecar(shard.path)
            written.append(path)
    return written


def refuse_remote(shard: Shard) -> None:
    """Indexes are written beside local tars alone."""
    if shard.is_remote:
        raise StoreError(
            f"{shard.path}: a remote tar, expected a local one to write an index beside; index it "
            "where it is written, or read it with cache_dir, which keeps the index"
        )


def sidecar(shard: str) -> Path:
    """Where the index of a tar lies: ``train-000000.tar`` -> ``train-000000.idx``."""
    return Path(shard.removesuffix(".tar") + ".idx")


def write_sidecar(shard: str) -> None:
    """Index one tar; the file appears whole or not at all."""
    _write(
        sidecar(shard),
        _core.index_text(shard),
        "a folder that can be written; readers can do without: they then scan the tar each time",
    )


# ---- shard lists ---------------------------------------------------------------------------------


def check_list(path: str, shards: Iterable[Shard]) -> None:
    """Whether `write_list` may work, before it takes the time to count.

    Raises:
        StoreError: The list would not lie in a folder of this machine, or would hold a secret.
    """
    if is_remote(path) or not path.endswith(".json"):
        raise StoreError(
            f"{path}: expected a local file such as train.json to write a shard list to; upload it "
            "to where the tars lie"
        )
    if not Path(path).absolute().parent.is_dir():
        raise StoreError(f"{path}: no such folder, expected one to write a shard list in")
    for shard in shards:
        if shard.url is not None and shard.url != shard.path:
            raise StoreError(
                f"{shard.path}: a URL with a query or a password, which may be a secret, expected "
                "one that a file may hold; leave it out, or name the tar by s3://"
            )


def counted(shards: list[Shard]) -> Iterator[Shard]:
    """Each shard with its samples, bytes and ETag as they are now, whatever a list promised.

    Local tars are counted by the index beside them; of remote ones many at once, by theirs, or
    where there is none, by reading all of the tar.

    Raises:
        StoreError, CorruptShardError: As `Dataset`.
    """
    for first in range(0, len(shards), _COUNTED_AT_ONCE):
        some = [
            Shard(path=shard.path, url=shard.url)
            for shard in shards[first : first + _COUNTED_AT_ONCE]
        ]
        yield from Dataset.of(some, "to be listed", Reach()).seen()


def write_list(path: str, shards: Iterable[Shard]) -> None:
    """Write a wids shard list of counted shards; it appears whole or not at all.

    URLs of local tars in or below the folder of the list are relative to it: they may move
    together. Of other local ones they are absolute paths, of remote ones whole URLs.

    Raises:
        StoreError: The folder cannot be written.
    """
    folder = Path(path).absolute().parent
    document = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [_entry(folder, shard) for shard in shards],
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"  # ASCII: names may be any bytes
    _write(Path(path), text.encode(), "a folder that can be written; choose another one")


def _entry(folder: Path, shard: Shard) -> dict[str, Any]:
    entry = {"url": _url(folder, shard), "nsamples": shard.samples, "filesize": shard.bytes}
    return entry if shard.etag is None else entry | {"etag": shard.etag}


def _url(folder: Path, shard: Shard) -> str:
    if shard.is_remote:
        return shard.path
    tar = Path(os.path.normpath(Path(shard.path).absolute()))
    root = Path(os.path.normpath(folder))
    if not tar.is_relative_to(root):
        return str(tar)
    url = str(tar.relative_to(root))
    return f"./{url}" if ":" in url else url  # else "s3:a.tar" looked like a URL


def _write(path: Path, content: bytes, expected: str) -> None:
    """A file that is there whole or not at all, whenever this process is killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: {error.strerror or error}, expected {expected}") from error
