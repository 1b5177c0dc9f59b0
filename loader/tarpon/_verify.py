"""Reads a shard back and says in sentences what is wrong with it. Never changes a tar.

A remote shard is copied to a temporary file, by ranges of one version of it, and checked there.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tarpon import _core, _pillow
from tarpon._index import sidecar
from tarpon._names import Shard, file_name
from tarpon.dataset import Dataset, Reach
from tarpon.errors import TarponError
from tarpon.fields import IMAGE_EXTENSIONS

_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 8
Progress = Callable[[str, int, int], None]


def check_shard(shard: Shard, *, decode: bool, progress: Progress) -> tuple[int, list[str]]:
    """(samples, faults) of one tar; the faults are sentences.

    Args:
        decode: Also decode every image.
        progress: Called with a remote shard's name, the bytes read of it and all it has.

    Raises:
        OSError: There is no room here for the copy of a remote one.
    """
    if not shard.is_remote:
        return _check(shard, decode=decode)
    with tempfile.TemporaryDirectory(prefix="tarpon-verify-") as folder:
        copy = Path(folder, "shard.tar")
        try:
            size = _fetch(shard, copy, progress)
        except TarponError as error:  # of the network; there is no room here: an OSError
            return 0, [str(error)]
        samples, faults = _check(replace(shard, path=str(copy), bytes=size), decode=decode)
    there, here = shard.path.removesuffix(".tar"), str(copy).removesuffix(".tar")
    return samples, [fault.replace(here, there) for fault in faults]


def _fetch(shard: Shard, copy: Path, progress: Progress) -> int:
    """Write a remote tar, and the index beside it if there is one, to `copy`; the tar's bytes."""
    # "No samples": nobody has to count them, it is only read.
    far = Dataset.of([replace(shard, samples=0)], shard.path, Reach()).core
    index, size = far.sidecar(0), far.shard_bytes()[0]
    parts: deque[Future[bytes]] = deque()
    ahead = iter(range(0, size, _PART_BYTES))
    with ThreadPoolExecutor(_PARTS_AT_ONCE, "tarpon-verify") as pool:
        try:
            with copy.open("wb") as file:
                for done in range(0, size, _PART_BYTES):
                    progress(file_name(shard.path), done, size)
                    for at in itertools.islice(ahead, _PARTS_AT_ONCE - len(parts)):
                        parts.append(pool.submit(far.part, 0, at, min(_PART_BYTES, size - at)))
                    file.write(parts.popleft().result())
            if index is not None:
                sidecar(str(copy)).write_bytes(index)
        except TarponError:
            raise
        except OSError as error:
            raise OSError(
                f"{copy.parent}: {error.strerror or error}, expected room for {size} bytes of "
                f"{shard.path}; set TMPDIR to a folder that has it"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return size


def _check(shard: Shard, *, decode: bool) -> tuple[int, list[str]]:
    faults = _wrong_size(shard)
    if faults:  # nothing that is said about its inside would help
        return 0, faults
    keys: set[str] = set()
    try:
        dataset = Dataset(shard.path)  # reads the index, or scans the tar
        for number in range(len(dataset)):
            sample = dataset[number]  # every header must agree with the index
            key = dataset.key(number)
            if key in keys:
                faults.append(
                    f"sample {key}: members at two places, expected them side by side; pack the "
                    "shard again in the order of the names, for instance with `tar --sort=name`"
                )
            keys.add(key)
            if decode:
                faults += _undecodable(dataset.key(number), sample)
        faults += _stale_index(shard.path)
    except (TarponError, ValueError) as error:
        return 0, [*faults, str(error)]
    if shard.samples >= 0 and shard.samples != len(dataset):
        faults.append(f"{len(dataset)} samples, expected {shard.samples} by the shard list")
    for algorithm, expected in (("md5", shard.md5sum), ("sha256", shard.sha256)):
        found = _digest(shard.path, algorithm) if expected else expected
        if found != expected:
            faults.append(f"{algorithm} {found}, expected {expected} by the shard list")
    return len(dataset), faults


def _wrong_size(shard: Shard) -> list[str]:
    try:
        size = Path(shard.path).stat().st_size
    except OSError as error:
        return [f"{error.strerror or error}, expected a tar"]
    if shard.bytes in (-1, size):
        return []
    return [f"{size} bytes, expected {shard.bytes} by the shard list; it was cut off or replaced"]


def _stale_index(path: str) -> list[str]:
    """An index may agree with every header it names and still leave samples out."""
    index = sidecar(path)
    if not index.exists():
        return []
    found, expected = _members(index.read_bytes()), _members(_core.index_text(path))
    if found == expected:
        return []
    return [
        f"{index}: {len(found)} samples, the tar has {len(expected)}, not the same; "
        "rebuild it with `tarpon index --force`"
    ]


def _members(text: bytes) -> list[frozenset[tuple[bytes, ...]]]:
    """The lines of an index without the header, each as a set of (offset, size)."""
    rows = [line.split() for line in text.splitlines()[1:]]
    width = 3 if text.startswith(b"v1.1") else 4
    return [
        frozenset((row[at + 1], row[at + 2]) for at in range(0, len(row) - 2, width))
        for row in rows
        if row
    ]


def _undecodable(key: str, sample: dict[str, bytes]) -> Iterator[str]:
    for extension in set(sample) & set(IMAGE_EXTENSIONS.split(";")):
        try:
            _pillow.decode(sample[extension])
        except _pillow.UndecodableError as error:
            yield f"sample {key}, component {extension}: {error}"


def _digest(path: str, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
