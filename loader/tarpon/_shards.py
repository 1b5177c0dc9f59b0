"""Turns what a person writes for `shards` into a list of tars. Reads shard lists, never tars."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tarpon import _far
from tarpon._lists import read_shard_list
from tarpon._names import (
    GLOB,
    Shard,
    compressed_ending,
    expand_braces,
    is_remote,
    local_path,
    plain,
    without_secrets,
)
from tarpon.errors import StoreError, TarponError
from tarpon.store import Store

# Between parts, not in the address of http://[2001:db8::1]/a.tar.
_PARTS = re.compile(r"::(?![0-9A-Fa-f:.]*\])")
Shards = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def resolve(shards: Shards, store: Store | None = None) -> list[Shard]:
    """The tars that `shards` names, in order.

    Takes a tar, a shard list (``train.json``), a folder (every ``*.tar`` in it, sorted), a glob,
    a brace pattern (``train-{000000..000127}.tar``), a list of any of these, or several joined
    by ``::``; each a local path, ``s3://bucket/key``, or ``http(s)://``, where there are no
    folders and globs.

    Raises:
        StoreError: Nothing there, or a scheme that is not supported.
        CorruptShardError: A shard list that is not one.
    """
    if shards == "" or not isinstance(shards, str | os.PathLike | Iterable):
        raise ValueError(f"shards={shards!r}, expected a path, a pattern or a list of them")
    if isinstance(shards, str | os.PathLike):
        parts = _PARTS.split(os.fspath(shards))
        found = [shard for part in parts for shard in _resolve_one(part, store)]
    else:
        found = [shard for part in shards for shard in resolve(part, store)]
    if not found:
        raise StoreError(f"shards={shown(shards)}: names no tar, expected at least one")
    return found


def shown(shards: Shards) -> str:
    """What was written for `shards`, without secrets."""
    if isinstance(shards, str | os.PathLike):
        return repr("::".join(map(without_secrets, _PARTS.split(os.fspath(shards)))))
    return f"[{', '.join(map(shown, shards))}]"


def _resolve_one(text: str, store: Store | None) -> list[Shard]:
    if not text:
        raise StoreError("shards: an empty path, expected a tar, a shard list or a folder")
    if is_remote(text):
        return _far.resolve(text, store)
    text = local_path(text)
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
        paths = expand_braces(text)
        if GLOB.search(text):
            return [shard for path in paths for shard in _look_up(path)]
        return [plain(path) for path in paths]
    path = Path(text)
    if path.is_dir():
        return _in_folder(path)
    if GLOB.search(text) and not path.exists():
        found = map(Path, glob.glob(text, recursive=True))  # as in a shell, no hidden ones
        return _as_shards(found, f"{text}: matches no file")
    if path.suffix == ".json":
        return read_shard_list(str(path), None)
    shard = plain(text)
    if not path.exists():
        raise StoreError(f"{text}: no such file or folder, expected a tar or a shard list")
    return [shard]


def _in_folder(folder: Path) -> list[Shard]:
    """Every tar of a folder but hidden ones.  A compressed one is no reason to leave it out."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    for name in names:
        ending = compressed_ending(name)
        if ending and name.removesuffix(ending) + ".tar" not in names:
            plain(str(folder / name))  # raises
    tars = (folder / name for name in names if name.endswith(".tar"))
    return _as_shards(tars, f"{folder}: a folder without *.tar")


def _as_shards(paths: Iterable[Path], otherwise: str) -> list[Shard]:
    """Each file as a tar, or as the shard list it is; in the order of their names.

    A link that leads nowhere is among them: left out, its samples would be missed by nobody.
    """
    files = sorted(path for path in paths if not path.is_dir())
    if not files:
        raise StoreError(f"{otherwise}, expected at least one tar")
    shards: list[Shard] = []
    for path in files:
        is_list = path.suffix == ".json"
        shards += read_shard_list(str(path), None) if is_list else [plain(str(path))]
    return shards
