"""The C core; see loader/core/*.h for the contracts. Use the package ``tarpon`` instead."""

from typing import Any

Buffer = Any  # whatever has the buffer protocol; typing knows it from 3.12 on

ORDER_VERSION: int
CACHE_BLOCK: int
AHEAD_GAP_LEAST: int

class Slab:
    """Memory of one batch, by the buffer protocol; writable."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Client:
    """Reads remote files on a thread of its own; see core/http.h."""

    def __init__(
        self,
        connections: int,
        deadline_s: float,
        stall_s: float,
        hedge: bool,
        ca_file: str | None,
    ) -> None: ...
    def read(self, name: str, url: str | None, most: int, /) -> bytes:
        """A whole file; ``url=None`` asks the signer."""
    def next_unsigned(self, timeout_s: float, /) -> tuple[object, str, bool, str] | None:
        """``(ticket, name, refused, region)`` of a URL that is needed."""
    def signed(
        self, ticket: object, url: str | None, lives_s: float, failure: str | None, /
    ) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def quiet(self) -> None:
        """Close all connections for good."""

class Cache:
    """Blocks of remote shards in a local folder; see core/cache.h."""

    def __init__(self, folder: str, most_bytes: int) -> None: ...
    def trouble(self) -> str | None:
        """Why nothing can be written, told once."""
    def stats(self) -> dict[str, int]: ...

class Dataset:
    """Shards laid end to end: ``(path, samples or -1, bytes or -1, is remote, url, etag)``."""

    def __init__(
        self,
        shards: list[tuple[str, int, int, bool, str | None, str | None]],
        client: Client | None = None,
        cache: Cache | None = None,
    ) -> None: ...
    def fill(self, shard: int, block: int, /) -> bool:
        """Get a block that is not in the cache; ``False``: it is, or there is no such block."""
    def __len__(self) -> int: ...
    def shard_samples(self) -> list[int]: ...
    def shard_bytes(self) -> list[int]:
        """-1 where nobody told, of a local one."""
    def shard_etags(self) -> list[str | None]:
        """As a list or a reply told; ``None``: of a local one, or where nobody did."""
    def part(self, shard: int, offset: int, size: int, /) -> bytes:
        """So many bytes of a tar, in one request."""
    def sidecar(self, shard: int, /) -> bytes | None:
        """The text of the index beside a tar; ``None``: there is none."""
    def index_bytes(self) -> int:
        """What indexes hold in memory now."""
    def sample(self, index: int, /) -> tuple[int, str, list[tuple[str, int, int]]]:
        """``(shard number, key, [(extension, offset, size), ...])``."""
    def read(self, index: int, extensions: str | None = None, /) -> dict[str, bytes]:
        """Every component, or the first of ``"jpg;jpeg;png"`` that the sample has."""

class Engine:
    """Threads that fill batches in the order they were submitted."""

    def __init__(
        self,
        dataset: Dataset,
        fields: list[tuple[Any, ...]],
        threads: int,
        buffer_bytes: int,
        window_bytes: int,
    ) -> None: ...
    def plan(self, samples: Buffer, first: bool, /) -> None:
        """Read these ahead, in about this order; `first`: before what was planned."""
    def skip(self, sample: int, /) -> None:
        """A sample that was planned will not be read."""
    def submit(
        self, samples: Buffer, positions: Buffer, seed: int, epoch: int, first: bool, /
    ) -> None: ...
    def take(
        self, timeout_s: float, /
    ) -> tuple[
        Slab,
        list[tuple[int, int, int]],
        list[str],
        list[tuple[int, int, bytes | None, str, int, str]],
    ]:
        """``(slab, layouts, keys, issues)`` of the oldest batch.

        A layout is ``(data_at, data_bytes, offsets_at)``; an issue is ``(slot, field, image,
        message, offset, shard)``: an image that is no JPEG, or ``None`` and what is wrong.
        """
    def cancel(self) -> None: ...
    def stats(self) -> dict[str, float]: ...
    def close(self) -> bool:
        """``False``: a thread hangs in a read, and ends when that does."""

def order(
    spec: tuple[int, bool, int, int, int, int, int], epoch: int, positions: Buffer, /
) -> bytes:
    """int64 samples at int64 positions; a spec is ``Order``'s version, shuffle, ... seed."""

def position(
    spec: tuple[int, bool, int, int, int, int, int], epoch: int, sample: int, /
) -> int: ...
def index_text(path: str, /) -> bytes: ...
def decode(jpeg: Buffer, /) -> tuple[bytes, int, int]: ...
def jpeg_front(data: Buffer, offsets: Buffer, /) -> tuple[bytes, list[tuple[int, str | None]]]:
    """``int32[count, 2]``, width and height as seen; and ``(slot, what is wrong)``.

    ``None``: it is no JPEG or has no end marker, and wants a closer look.
    """

def random_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
    seed: int,
    epoch: int,
    position: int,
    /,
) -> tuple[float, float, float, float, bool]: ...
def center_box(
    width: int, height: int, size: int, resize: int, /
) -> tuple[float, float, float, float]: ...
