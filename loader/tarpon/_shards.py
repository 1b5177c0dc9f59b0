"""Turns what a person writes for `shards` into a list of tars. Reads shard lists, never tars."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tarpon.errors import CorruptShardError, StoreError, TarponError

Shards = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_GLOB = re.compile(r"[*?[]")
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
    """One tar, and what a shard list promised of it: -1 and ``None`` where it did not."""

    path: str
    samples: int = -1
    bytes: int = -1
    md5sum: str | None = None
    sha256: str | None = None
    etag: str | None = None
    url: str | None = None

    @property
    def is_remote(self):
        return "://" in self.path


def without_secrets(t):
    return t


def resolve(shards: Shards, store=None) -> list[Shard]:
    """The tars that `shards` names, in order.

    Takes a tar, a shard list (``train.json``), a folder (every ``*.tar`` in it, sorted), a glob,
    a brace pattern (``train-{000000..000127}.tar``), a list of any of these, or several joined
    by ``::``.

    Raises:
        StoreError: Nothing there, or a scheme that is not supported.
        CorruptShardError: A shard list that is not one.
    """
    if shards == "" or not isinstance(shards, str | os.PathLike | Iterable):
        raise ValueError(f"shards={shards!r}, expected a path, a pattern or a list of them")
    if isinstance(shards, str | os.PathLike):
        parts = os.fspath(shards).split("::")
        found = [shard for part in parts for shard in _resolve_one(part)]
    else:
        found = [shard for part in shards for shard in resolve(part)]
    if not found:
        raise StoreError(f"shards={shards!r}: names no tar, expected at least one")
    return found


def _resolve_one(text: str) -> list[Shard]:
    if not text:
        raise StoreError("shards: an empty path, expected a tar, a shard list or a folder")
    text = _local_path(text)
    try:
        return _look_up(text)
    except TarponError:
        raise
    except OSError as error:  # no permission, a name too long, ...
        raise StoreError(
            f"{text}: {error.strerror or error}, expected a tar, a shard list or a folder; check "
            "the path and its permissions"
        ) from error


def _look_up(text: str) -> list[Shard]:
    if "{" in text and not os.path.exists(text):  # which takes a text of any length
        paths = _expand_braces(text)
        if _GLOB.search(text):
            return [shard for path in paths for shard in _look_up(path)]
        return [_plain(path) for path in paths]
    path = Path(text)
    if path.is_dir():
        return _in_folder(path)
    if _GLOB.search(text) and not path.exists():
        found = map(Path, glob.glob(text, recursive=True))  # as in a shell, no hidden ones
        return _as_shards(found, f"{text}: matches no file")
    if path.suffix == ".json":
        return _read_shard_list(path)
    shard = _plain(text)
    if not path.exists():
        raise StoreError(f"{text}: no such file or folder, expected a tar or a shard list")
    return [shard]


def _plain(path: str, **promised: Any) -> Shard:
    """A shard, unless its name says that it is compressed; the core looks at the bytes too."""
    ending = _compressed_ending(path)
    if ending:
        plain = path.removesuffix(ending) + ".tar"
        raise CorruptShardError(
            f"{path}: a compressed tar, expected a plain one, whose samples can be read one by "
            f"one; rewrite it with `{_COMPRESSED[ending]} < {shlex.quote(path)} > "
            f"{shlex.quote(plain)}`"
        )
    return Shard(path=path, **promised)


def _compressed_ending(path: str) -> str | None:
    return next((ending for ending in _COMPRESSED if path.endswith(ending)), None)


def _in_folder(folder: Path) -> list[Shard]:
    """Every tar of a folder but hidden ones.  A compressed one is no reason to leave it out."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    for name in names:
        ending = _compressed_ending(name)
        if ending and name.removesuffix(ending) + ".tar" not in names:
            _plain(str(folder / name))  # raises
    tars = (folder / name for name in names if name.endswith(".tar"))
    return _as_shards(tars, f"{folder}: a folder without *.tar")


def _local_path(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme == "file":
        return parts.path
    if parts.scheme and "://" in text:
        raise StoreError(
            f"{parts.scheme}://{parts.hostname or ''}{parts.path}: {parts.scheme}:// is not "
            "supported yet, expected local files; copy the shards to a local folder"
        )
    if text.startswith("pipe:"):
        raise StoreError("pipe: commands are not supported, expected local files")
    return text


def _as_shards(paths: Iterable[Path], otherwise: str) -> list[Shard]:
    """Each file as a tar, or as the shard list it is; in the order of their names.

    A link that leads nowhere is among them: left out, its samples would be missed by nobody.
    """
    files = sorted(path for path in paths if not path.is_dir())
    if not files:
        raise StoreError(f"{otherwise}, expected at least one tar")
    return [
        shard
        for path in files
        for shard in (_read_shard_list(path) if path.suffix == ".json" else [_plain(str(path))])
    ]


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


def _expand_braces(text: str) -> list[str]:
    """``a-{0..1}-{x,y}.tar`` to four paths; no nesting."""
    pieces = _BRACES.split(text)  # text, body, text, body, ..., text
    if any("{" in piece or "}" in piece for piece in pieces):
        raise StoreError(f"{text}: unbalanced or nested braces, expected such as {{0000..0127}}")
    choices = [
        _alternatives(piece) if number % 2 else [piece] for number, piece in enumerate(pieces)
    ]
    return ["".join(combination) for combination in product(*choices)]


def _read_shard_list(path: Path, *, within: Path | None = None) -> list[Shard]:
    """The tars of a wids shard list, and of the datasets it names, one after the other.

    URLs are relative to `base`, and that to the list. `within` is the list that names this one.
    """
    document = _load(path)
    own, datasets = document.get("shardlist"), document.get("datasets", [])
    if not isinstance(own, list) and not (own is None and datasets):
        raise CorruptShardError(
            f"{path}: no 'shardlist', expected a wids shard list such as the shard step writes"
        )
    if within and datasets:
        raise CorruptShardError(
            f"{path}: has 'datasets', expected a plain shard list, as {within} names it"
        )
    folder = _base(path, document, path.parent)
    shards = [_entry(path, folder, number, entry) for number, entry in enumerate(own or [])]
    if not isinstance(datasets, list):
        raise CorruptShardError(f"{path}: 'datasets' is {datasets!r}, expected a list of them")
    for number, dataset in enumerate(datasets):
        shards += _dataset(path, folder, number, dataset)
    return shards


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error}, expected a shard list; was the version published?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorruptShardError(f"{path}: not JSON ({error}), expected a shard list") from error
    return document if isinstance(document, dict) else {}


def _base(path: Path, document: dict[str, Any], folder: Path) -> Path:
    base = document.get("base") or ""
    if not isinstance(base, str):
        raise CorruptShardError(f"{path}: 'base' is {base!r}, expected a path or a URL")
    return folder / _local_path(base)


def _dataset(path: Path, folder: Path, number: int, dataset: Any) -> list[Shard]:
    """One of a list's 'datasets': a shard list in place, or the place of one."""
    fields: dict[str, Any] = dataset if isinstance(dataset, dict) else {}
    source, entries = fields.get("source_url"), fields.get("shardlist")
    if isinstance(source, str):
        return _read_shard_list(folder / _local_path(source), within=path)
    if not isinstance(entries, list):
        raise CorruptShardError(
            f"{path}: dataset {number} is {str(dataset)[:200]}, expected an object with "
            "'shardlist' or 'source_url'"
        )
    folder = _base(path, fields, folder)
    return [_entry(path, folder, at, entry) for at, entry in enumerate(entries)]


def _entry(path: Path, folder: Path, number: int, entry: Any) -> Shard:
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
            f"{path}: shard {number} is {entry!r}, expected an object with 'url' and 'nsamples'"
        )
    return _plain(
        str(folder / _local_path(url)),
        samples=samples,
        bytes=size,
        md5sum=fields.get("md5sum"),
        sha256=fields.get("sha256"),
    )
