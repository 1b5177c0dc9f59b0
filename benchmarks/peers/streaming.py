"""mosaicml-streaming: the set as its own MDS shards, in this process or with workers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.data import DataSet, label_of
from benchmarks.measure import Epoch, Tally
from benchmarks.members import batch_size, converted


def _base() -> Any:
    """``streaming.base``, which is the library, without its ready-made datasets.

    ``import streaming`` also imports those, and with them torchvision and transformers, neither
    of which is used here. Its base wants two classes of transformers, to ask whether a batch is
    one: empty ones do.
    """
    found = importlib.util.find_spec("streaming")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("no module named 'streaming'")
    package = ModuleType("streaming")
    package.__path__ = list(found.submodule_search_locations)
    wanted = {
        "feature_extraction_utils": "BatchFeature",
        "tokenization_utils_base": "BatchEncoding",
    }
    stand_ins = {"transformers": ModuleType("transformers")}
    for inside, name in wanted.items():
        module = ModuleType(f"transformers.{inside}")
        setattr(module, name, type(name, (), {}))
        stand_ins[module.__name__] = module
    sys.modules |= {"streaming": package, **stand_ins}
    return importlib.import_module("streaming.base")


base = _base()


def _as_it_is(value: Any) -> Any:
    return value


def _convert(data: DataSet, folder: Path) -> None:
    with base.MDSWriter(out=str(folder), columns={"jpg": "bytes", "cls": "int"}) as writer:
        for path in data.files:
            writer.write({"jpg": Path(path).read_bytes(), "cls": label_of(path)})


def make(data: DataSet, *, workers: int, batch: int) -> Epoch:
    """`workers` = 0: a DataLoader that reads here, torch's default."""
    folder = converted(data, "mds", lambda path: _convert(data, path))
    per_batch = batch_size(data, batch)
    loader: DataLoader[Any] = DataLoader(
        base.StreamingDataset(local=str(folder), batch_size=per_batch, shuffle=False),
        batch_size=per_batch,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_as_it_is,
    )

    def epoch(number: int, tally: Tally) -> None:
        for made in loader:
            size = sum(len(one["jpg"]) for one in made)
            labels = sum(one["cls"] for one in made)
            tally.raw(len(made), size, labels, lambda it=made: (one["jpg"] for one in it))

    return epoch
