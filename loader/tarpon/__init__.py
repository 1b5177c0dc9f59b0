"""WebDataset shards to training batches, decoded by C threads in an exact, resumable order."""

import importlib as _importlib
from types import ModuleType as _ModuleType

from tarpon._index import index
from tarpon._prefetch import prefetch
from tarpon.batch import Batch, Ragged
from tarpon.dataset import Dataset, View, open, view
from tarpon.errors import (
    BadSampleError,
    CorruptShardError,
    LoaderTimeoutError,
    StateMismatchError,
    StoreError,
    TarponError,
)
from tarpon.fields import (
    CenterCrop,
    Float,
    Image,
    Int,
    Json,
    Npy,
    RandomResizedCrop,
    Raw,
    Text,
)
from tarpon.loader import Loader
from tarpon.store import Store

__version__ = "0.1.0"

__all__ = [
    "BadSampleError",
    "Batch",
    "CenterCrop",
    "CorruptShardError",
    "Dataset",
    "Float",
    "Image",
    "Int",
    "Json",
    "Loader",
    "LoaderTimeoutError",
    "Npy",
    "Ragged",
    "RandomResizedCrop",
    "Raw",
    "StateMismatchError",
    "Store",
    "StoreError",
    "TarponError",
    "Text",
    "View",
    "index",
    "open",
    "prefetch",
    "view",
]


def __getattr__(name: str) -> _ModuleType:
    """`tarpon.torch` and `tarpon.dali`, imported when they are first asked for."""
    if name in ("dali", "torch"):
        return _importlib.import_module(f"tarpon.{name}")
    raise AttributeError(f"module 'tarpon' has no attribute {name!r}")
