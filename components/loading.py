"""How a dataset version becomes batches for a network: the fields, the proof and the device.

Shared by the steps that read shards. No torch in here: batches are numpy arrays.
"""

from __future__ import annotations

import json
from typing import Literal

import tarpon
from tarpon.fields import IMAGE_EXTENSIONS

from components import rules
from components.manifest import LEAKAGE, Manifest
from components.store import Store


class UnprovenDatasetError(ValueError):
    """The dataset version has no valid proof that no sample or group is on two sides."""


class EmptySplitError(ValueError):
    """A split that a step needs has no samples, or too few for one batch."""


class OneClassError(ValueError):
    """A dataset with fewer than two classes: there is nothing to tell apart."""


class DeviceError(RuntimeError):
    """The device asked for is not there."""


def require_classes(manifest: Manifest) -> None:
    """Refuse a dataset version in which every model would be right.

    Raises:
        OneClassError: It has fewer than two classes.
    """
    if len(manifest.classes) < 2:
        raise OneClassError(
            f"{manifest.url}: found the classes {list(manifest.classes)}, expected at least two; "
            "was a class lost in quarantine? The catalog's column `error` says why"
        )


def require_proof(manifest: Manifest) -> None:
    """Refuse a dataset version whose `leakage.json` does not prove the split.

    Raises:
        UnprovenDatasetError: The proof is missing, failed, or was made for other samples.
    """
    store, where = Store(manifest.url), f"{manifest.url}/{LEAKAGE}"
    remedy = "run the shard step's verify again, or set train.allow_unproven=true to train anyway"
    if not store.exists(LEAKAGE):
        raise UnprovenDatasetError(f"{where}: not found, expected the split's proof; {remedy}")
    try:
        proof = json.loads(store.read_bytes(LEAKAGE))
        digest, ok = proof["digest"], proof["ok"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnprovenDatasetError(
            f"{where}: found no digest and verdict in it, expected the split's proof; {remedy}"
        ) from error
    if digest != manifest.digest:
        raise UnprovenDatasetError(
            f"{where}: found the proof of digest {digest!r}, expected {manifest.digest!r} as in "
            f"dataset.json; {remedy}"
        )
    if ok is not True:
        raise UnprovenDatasetError(
            f"{where}: found a sample or a group on two sides of the split (ok={ok!r}), expected "
            f"ok=true; split again; {remedy}"
        )


def require_batch(manifest: Manifest, batch_size: int) -> None:
    """Refuse a train split from which no whole batch of all ranks can be made.

    Raises:
        EmptySplitError: It has fewer samples.
    """
    samples = split_samples(manifest, "train")
    if samples < batch_size:
        raise EmptySplitError(
            f"{manifest.url}: the train split has {samples} samples, expected at least one batch "
            f"of {batch_size}; lower train.batch_size or add data"
        )


def train_batches(
    manifest: Manifest,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    threads: int | None,
    rank: int = 0,
    world_size: int = 1,
    raw: bool = False,
) -> tarpon.Loader:
    """Shuffled, randomly cropped and flipped batches of the train split, whole batches only.

    Args:
        batch_size: Of this rank.
        raw: Hand over the encoded images, for DALI to decode.

    Raises:
        EmptySplitError: Fewer samples than one batch of all ranks.
    """
    require_batch(manifest, batch_size * world_size)
    crop = tarpon.RandomResizedCrop(image_size, ext=IMAGE_EXTENSIONS)
    return tarpon.Loader(
        manifest.shards_url("train"),
        batch_size=batch_size,
        fields={
            "image": tarpon.Raw(IMAGE_EXTENSIONS) if raw else crop,
            "label": tarpon.Int("cls"),
        },
        shuffle=True,
        seed=seed,
        threads=threads,
        rank=rank,
        world_size=world_size,
    )


def evaluation_batches(
    manifest: Manifest,
    split: str,
    *,
    batch_size: int,
    image_size: int,
    threads: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    last: Literal["keep", "pad"] = "keep",
    raw: bool = False,
) -> tarpon.Loader:
    """Every sample of a split once, in order, centre crop.

    Args:
        batch_size: Of this rank.
        last: The last batch may be short, or is filled up with what `valid` marks.
        raw: Hand over the encoded images, for DALI to decode.

    Raises:
        EmptySplitError: The split has no samples.
    """
    if split_samples(manifest, split) == 0:
        raise EmptySplitError(
            f"{manifest.url}: the {split} split has no samples, expected at least one; raise its "
            "share in split.fractions or add data"
        )
    crop = tarpon.CenterCrop(image_size, ext=IMAGE_EXTENSIONS)
    return tarpon.Loader(
        manifest.shards_url(split),
        batch_size=batch_size,
        fields={
            "image": tarpon.Raw(IMAGE_EXTENSIONS) if raw else crop,
            "label": tarpon.Int("cls"),
        },
        shuffle=False,
        last=last,
        threads=threads,
        rank=rank,
        world_size=world_size,
    )


def split_samples(manifest: Manifest, split: str) -> int:
    """Samples in a split; 0 where the version has no such split."""
    found = manifest.splits.get(split)
    return 0 if found is None else found.samples


def pick_device(requested: str, *, cuda: int, where: str = "train.device") -> str:
    """`auto` to `cuda` where there is one, else `cpu`.

    Args:
        cuda: torch.cuda.device_count().
        where: How whoever asked calls this option, for messages.

    Raises:
        DeviceError: A CUDA device was asked for and is absent, or no such device.
    """
    if requested == "auto":
        return "cuda" if cuda else "cpu"
    try:
        rules.check_device(requested, where=where)
    except ValueError as error:
        raise DeviceError(str(error)) from error
    kind, _, number = requested.partition(":")
    if kind == "cuda" and int(number or 0) >= cuda:
        seen = f"{cuda:d} CUDA devices" if cuda else "no CUDA device"
        raise DeviceError(
            f"{where}={requested!r}: torch sees {seen}; use {where}=auto or cpu, or "
            "check the driver, the pod's nvidia.com/gpu limit and that torch is a CUDA build"
        )
    return requested
