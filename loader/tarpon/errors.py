"""What can go wrong, by what a person would do about it. Messages are built where the facts are.

TarponError
├── StoreError (OSError)              a shard, list or index cannot be reached
├── CorruptShardError (ValueError)    bytes that are not what their format says
├── BadSampleError (ValueError)       one sample's wanted fields cannot be made
├── StateMismatchError (ValueError)   a state of another dataset, seed or order
└── LoaderTimeoutError (TimeoutError) no batch in time
"""


class TarponError(Exception):
    """Base of every error this package raises on purpose, other than for a wrong argument."""


class StoreError(TarponError, OSError):
    """A shard, shard list or index is missing, unreadable or not the size it should be."""


class CorruptShardError(TarponError, ValueError):
    """A tar or index whose bytes break their format, or that disagree with each other.

    Attributes:
        shard: Path of the tar or index, or ``None``.
        offset: Bytes from its start where the fault was seen; 0 when that makes no sense.
    """

    shard: str | None = None
    offset: int = 0


class BadSampleError(TarponError, ValueError):
    """A sample lacks a wanted component, or the component cannot be decoded.

    Attributes:
        shard: Path of the shard the sample lies in.
        key: The sample's key.
        offset: Bytes from the start of the shard to the component.
        reason: What was found and what was expected.
    """

    shard: str | None = None
    key: str | None = None
    offset: int = 0
    reason: str | None = None


class StateMismatchError(TarponError, ValueError):
    """A state was taken from another dataset, seed or order than the loader has."""


class LoaderTimeoutError(TarponError, TimeoutError):
    """No batch became ready within ``timeout_s``; the message names what was waited for."""
