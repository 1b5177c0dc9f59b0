"""Read a tar back twice, by `tarfile` and by its index, and insist that both say the same.

What comes out is what a training run would see; a damaged tar or index is named with shard and
byte.  Nothing here knows about splits or leaks.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from components.manifest import ShardInfo
from components.shard import index
from components.shard.layout import BLOCK, ShardError
from components.store import Store

_CHUNK = 2**20


class CorruptShardError(ShardError):
    """A tar or its index is not what was sealed; carries where.

    Args:
        message: The whole message.
        shard: URL of the tar.
        offset: Bytes from the tar's start to where it goes wrong.
    """

    def __init__(self, message: str, *, shard: str, offset: int) -> None:
        super().__init__(message)
        self.shard = shard
        self.offset = offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One sample as its tar holds it."""

    key: str
    class_index: int
    label: str
    phash: int | None
    split_group: str | None


def samples(store: Store, version: str, info: ShardInfo) -> Iterator[Found]:
    """Every sample of one tar, each image proven to hash to its key.

    Raises:
        CorruptShardError: Cut off, changed since it was sealed, at odds with its index, or with a
            sample whose members are not what pack writes.
        StoreError: The tar or its index is not there.
    """
    rel = f"{version}/{info.url}"
    url = store.url(rel)
    idx_rel = rel.removesuffix(".tar") + ".idx"
    try:
        listed = index.parse(store.read_bytes(idx_rel), where=store.url(idx_rel))
    except ValueError as error:
        raise CorruptShardError(str(error), shard=url, offset=0) from error
    size = store.size(rel)
    with store.open(rel) as file:
        tar = _read(file, url, size, expected_size=info.filesize)
    if size != info.filesize or tar.sha256 != info.sha256:
        raise _changed(url, size, info, tar, listed)
    _compare(tar.entries, listed, url=url, idx_url=store.url(idx_rel))
    if len(listed) != info.nsamples:
        raise CorruptShardError(
            f"{url}: found {len(listed)} samples, the shard list says {info.nsamples}; run the "
            "shard step again",
            shard=url,
            offset=0,
        )
    for entries in listed:
        yield _sample(tar, url, entries)


@dataclass(slots=True)
class _Tar:
    """What one pass over a tar leaves: its members, small ones whole, images as their sha256."""

    entries: list[index.Entry]
    texts: dict[int, bytes]  # by offset: .cls and .json
    images: dict[int, str]  # by offset: sha256 of everything else
    sha256: str = ""


class _Hashing:
    """A stream that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.total = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.total.update(data)
        return data


def _read(file: IO[bytes], url: str, size: int, *, expected_size: int) -> _Tar:
    """Every member by `tarfile`, in order, in one pass: a tar on S3 is loaded once, to nowhere."""
    found = _Tar([], {}, {})
    stream = _Hashing(file)
    end = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as tar:  # type: ignore[call-overload]
            for member in tar:
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"member {member.name} is cut off")
                ext = member.name.rpartition("/")[2].partition(".")[2]
                entry = index.Entry(ext, member.offset_data, member.size, member.name)
                content = tar.extractfile(member)
                _keep(found, entry, content.read() if content else b"")
                end = entry.offset + -(-entry.size // BLOCK) * BLOCK
    except (tarfile.TarError, EOFError) as error:
        raise _cut(url, end, size, expected_size, f"{error}") from error
    if size < expected_size:
        raise _cut(url, end, size, expected_size, "the end of the tar is missing")
    while stream.read(_CHUNK):
        pass
    found.sha256 = stream.total.hexdigest()
    return found


def _keep(tar: _Tar, entry: index.Entry, content: bytes) -> None:
    tar.entries.append(entry)
    if entry.ext in ("cls", "json"):
        tar.texts[entry.offset] = content
    else:
        tar.images[entry.offset] = hashlib.sha256(content).hexdigest()


def _cut(url: str, good: int, size: int, expected_size: int, why: str) -> CorruptShardError:
    return CorruptShardError(
        f"{url} at byte {good}: {why}; found {size} bytes, the shard list says {expected_size}; "
        "delete the tar and run the shard step again",
        shard=url,
        offset=good,
    )


def _compare(
    walked: list[index.Entry], listed: list[list[index.Entry]], *, url: str, idx_url: str
) -> None:
    """Tar and index name the same members at the same bytes, sample by sample."""
    flat = [entry for sample in listed for entry in sample]
    for found, wanted in itertools.zip_longest(flat, walked):
        if found != wanted:
            offset = wanted.offset if wanted else found.offset
            raise CorruptShardError(
                f"{idx_url}: says {_describe(found)}, the tar {url} holds {_describe(wanted)}; "
                "delete the index and run the shard step again",
                shard=url,
                offset=offset,
            )
    grouped = [
        list(group) for _, group in itertools.groupby(walked, key=lambda e: e.name.split(".")[0])
    ]
    for number, (sample, members) in enumerate(zip(listed, grouped, strict=False), start=2):
        if sample != members:
            raise CorruptShardError(
                f"{idx_url} line {number}: holds {len(sample)} members, the tar {url} has "
                f"{len(members)} of that sample; delete the index and run the shard step again",
                shard=url,
                offset=members[0].offset,
            )


def _describe(entry: index.Entry | None) -> str:
    if entry is None:
        return "no further member"
    return f"{entry.name} at byte {entry.offset} with {entry.size} bytes"


def _changed(
    url: str, size: int, info: ShardInfo, tar: _Tar, listed: list[list[index.Entry]]
) -> CorruptShardError:
    """The tar is whole but other bytes than sealed; finds where by its index and image hashes."""
    offset = 0
    flat = [entry for sample in listed for entry in sample]
    for found, wanted in itertools.zip_longest(tar.entries, flat):
        if wanted is None:
            break
        key = wanted.name.partition(".")[0]
        if found != wanted or tar.images.get(wanted.offset, key) != key:
            offset = wanted.offset
            break
    return CorruptShardError(
        f"{url} at byte {offset}: not the tar that was sealed, found {size} bytes, the shard list "
        f"says {info.filesize} with sha256 {info.sha256[:12]}; delete the tar and run the shard "
        "step again",
        shard=url,
        offset=offset,
    )


def _sample(tar: _Tar, url: str, entries: list[index.Entry]) -> Found:
    """One sample, from the members that its index names."""
    texts = {entry.ext: tar.texts[entry.offset] for entry in entries if entry.offset in tar.texts}
    images = [tar.images[entry.offset] for entry in entries if entry.offset in tar.images]
    first = entries[0]
    key = first.name.partition(".")[0]
    try:
        cls, text = texts["cls"], texts["json"]
        (image,) = images
        meta = json.loads(text)
        phash = meta["phash"]
        found = Found(
            key=key,
            class_index=int(cls),
            label=meta["label"],
            phash=None if phash is None else int(phash, 16),
            split_group=meta.get("split_group"),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptShardError(
            f"{url} at byte {first.offset}: sample {key} has the members "
            f"{sorted(entry.ext for entry in entries)} ({error!r}), expected one image, a number "
            "in .cls and our .json; run the shard step again",
            shard=url,
            offset=first.offset,
        ) from error
    if image != key or meta["sample_id"] != key:
        raise CorruptShardError(
            f"{url} at byte {first.offset}: the image of sample {key} does not hash to its key; "
            "delete the tar and run the shard step again",
            shard=url,
            offset=first.offset,
        )
    return found
