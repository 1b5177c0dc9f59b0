"""Turns what a person writes for `shards` into a list of tars. Reads shard lists, never tars."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tarpon.errors import CorruptShardError, StoreError

Shards = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst")
_MOST_SHARDS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tar, and what a shard list promised of it: -1 and ``None`` where it did not."""

    path: str
    samples: int = -1
    bytes: int = -1
    md5sum: str | None = None
    sha256: str | None = None


def resolve(shards: Shards) -> list[Shard]:
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
    text = _local_path(text)
    if "{" in text:
        return [Shard(path=path) for path in _expand_braces(text)]
    path = Path(text)
    if path.is_dir():
        return _as_shards(path.glob("*.tar"), f"{text}: a folder without *.tar")
    if any(character in text for character in "*?[") and not path.exists():
        anchor = Path(path.anchor)
        pattern = str(path.relative_to(anchor)) if path.is_absolute() else text
        return _as_shards(anchor.glob(pattern), f"{text}: matches no file")
    if path.suffix == ".json":
        return _read_shard_list(path)
    if text.endswith(_COMPRESSED):
        raise CorruptShardError(
            f"{text}: a compressed tar, expected a plain one, which can be read from the middle; "
            "decompress it once, for instance with `gunzip`, `xz -d` or `zstd -d`"
        )
    if not path.exists():
        raise StoreError(f"{text}: no such file or folder, expected a tar or a shard list")
    return [Shard(path=text)]


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
    """Each file as a tar, or as the shard list it is; in the order of their names."""
    files = sorted(path for path in paths if path.is_file())
    if not files:
        raise StoreError(f"{otherwise}, expected at least one tar")
    return [
        shard
        for path in files
        for shard in (_read_shard_list(path) if path.suffix == ".json" else [Shard(path=str(path))])
    ]


def _alternatives(body: str) -> list[str]:
    numbers = _NUMBERS.fullmatch(body)
    if numbers is None:
        return body.split(",")
    low, high = numbers.groups()
    if int(high) < int(low) or int(high) - int(low) >= _MOST_SHARDS:
        raise StoreError(f"{{{body}}}: expected a rising range of at most {_MOST_SHARDS} shards")
    return [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]


def _expand_braces(text: str) -> list[str]:
    """``a-{0..1}-{x,y}.tar`` to four paths; no nesting."""
    pieces = _BRACES.split(text)  # text, body, text, body, ..., text
    if any("{" in piece or "}" in piece for piece in pieces):
        raise StoreError(f"{text}: unbalanced or nested braces, expected such as {{0000..0127}}")
    choices = [
        _alternatives(piece) if number % 2 else [piece] for number, piece in enumerate(pieces)
    ]
    return ["".join(combination) for combination in product(*choices)]


def _read_shard_list(path: Path) -> list[Shard]:
    """The tars of a wids shard list; their URLs are relative to it."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error}, expected a shard list; was the version published?"
        ) from error
    except ValueError as error:
        raise CorruptShardError(f"{path}: not JSON ({error}), expected a shard list") from error
    entries = document.get("shardlist") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise CorruptShardError(
            f"{path}: no 'shardlist', expected a wids shard list such as the shard step writes"
        )
    base = str(document.get("base") or path.parent)
    return [_entry(path, base, number, entry) for number, entry in enumerate(entries)]


def _entry(path: Path, base: str, number: int, entry: Any) -> Shard:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    url, samples, size = fields.get("url"), fields.get("nsamples"), fields.get("filesize", -1)
    if not (
        isinstance(url, str)
        and isinstance(samples, int)
        and isinstance(size, int)
        and 0 <= samples <= 2**62
        and -1 <= size < 2**63
    ):
        raise CorruptShardError(
            f"{path}: shard {number} is {entry!r}, expected an object with 'url' and 'nsamples'"
        )
    return Shard(
        path=str(Path(_local_path(base)) / _local_path(url)),
        samples=samples,
        bytes=size,
        md5sum=fields.get("md5sum"),
        sha256=fields.get("sha256"),
    )
