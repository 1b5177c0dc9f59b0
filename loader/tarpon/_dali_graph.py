"""The graph that DALI runs, and what it is fed: see `tarpon.dali`, which alone imports this."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import nvidia.dali.backend
import nvidia.dali.types
from nvidia.dali import fn as _fn
from nvidia.dali.auto_aug import auto_augment, rand_augment, trivial_augment
from nvidia.dali.auto_aug.core import select, signed_bin
from nvidia.dali.pipeline import do_not_convert, pipeline_def

from tarpon import _dali
from tarpon.batch import Ragged
from tarpon.fields import Triple

Augment = Literal["trivial", "rand", "auto"]
Crops = Literal["dali", "tarpon"]
Dtype = Literal["float32", "float16", "bfloat16"]

fn: Any = _fn  # its stubs know neither every type of the wheel nor every argument
types: Any = nvidia.dali.types
backend: Any = nvidia.dali.backend

_RAND_STEPS, _RAND_BIN, _BINS = 2, 9, 31  # torchvision's RandAugment
_TRIVIAL_SHIFT = 32  # pixels
_SHIFT = 150 / 331  # of the side, in RandAugment and AutoAugment


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a graph is built from, and with it what it is fed."""

    size: int
    resize: int | None
    train: bool
    gpu: bool
    crops: Crops
    dtype: Dtype
    mean: Triple
    std: Triple
    channels_last: bool
    operations: list[Any] | None  # of an augmentation, which `policy` numbers
    policy: _dali.Policy | None
    bins: int  # how many strengths there are

    def inputs(self) -> tuple[str, ...]:
        """The graph's inputs, in order."""
        ours = not self.train or self.crops == "tarpon"
        names = ["images", *(("start", "extent") if ours else ("state",))]
        if self.train:
            names += ["flip"]
        if self.operations is not None:
            names += ["ops", "bins", "signs"]
        return tuple(names)

    def arrays(self, sizes: _dali.Int32s, **draw: Any) -> dict[str, Any]:
        """Those inputs but the images, for one batch; `draw` says which draws are its own."""
        arrays: dict[str, Any] = {}
        if not self.train:
            centre = _dali.centre_windows(sizes, self.size, self.resize)
            return {"start": _xy(centre[:, :2]), "extent": _xy(centre[:, 2:])}
        box, arrays["flip"] = _dali.random_windows(sizes, **draw)
        if self.crops == "tarpon":
            arrays |= {"start": _xy(box[:, :2]), "extent": _xy(box[:, 2:] - box[:, :2])}
        else:
            arrays["state"] = _dali.operator_state(**draw)
        if self.policy is not None:
            ops, bins, signs = self.policy.draw(**draw)
            arrays |= {"ops": ops, "bins": bins, "signs": signs}
        return arrays


@pipeline_def(enable_conditionals=True)
def graph(plan: Plan, source: Any) -> Any:
    """uint8 images of `size` x `size`, then normalised ones."""
    given = _inputs(plan, source)
    decoder = "mixed" if plan.gpu else "cpu"
    roi = {}
    if not plan.train:
        pixels = fn.decoders.image(given["images"], device=decoder)
        roi = {"roi_start": given["start"], "roi_end": given["extent"]}
    elif plan.crops == "tarpon":
        pixels = fn.decoders.image_slice(
            given["images"],
            given["start"],
            given["extent"],
            device=decoder,
            axes=(0, 1),
            normalized_anchor=False,
            normalized_shape=False,
        )
    else:
        pixels = fn.decoders.image_random_crop(
            given["images"], device=decoder, _random_state=given["state"]
        )
    pixels = fn.resize(pixels, size=(plan.size, plan.size), interp_type=types.INTERP_LINEAR, **roi)
    if plan.operations is not None:
        pixels = _augmented(plan, pixels, given)
    return fn.crop_mirror_normalize(
        pixels,
        mirror=given.get("flip", 0),
        mean=list(plan.mean),
        std=list(plan.std),
        dtype=types.FLOAT16 if plan.dtype == "float16" else types.FLOAT,
        output_layout="HWC" if plan.channels_last else "CHW",
    )


@do_not_convert
def _inputs(plan: Plan, source: Callable[[Any], tuple[Any, ...]]) -> dict[str, Any]:
    names = plan.inputs()
    nodes = fn.external_source(
        source=source, num_outputs=len(names), batch=True, batch_info=True, no_copy=True
    )
    return dict(zip(names, nodes, strict=True))


def _augmented(plan: Plan, pixels: Any, given: Mapping[str, Any]) -> Any:
    assert plan.policy is not None
    assert plan.operations is not None
    for step in range(plan.policy.ops.shape[1]):
        pixels = select(
            plan.operations,
            given["ops"][step],
            data=pixels,
            magnitude_bin=signed_bin(given["bins"][step], given["signs"][step]),
            num_magnitude_bins=plan.bins,
            fill_value=128,
            interp_type=None,
        )
    return pixels


def augmentation(kind: Augment | None, size: int) -> tuple[list[Any] | None, Any, int]:
    """DALI's operations, the policy that draws from them, and how many strengths there are."""
    if kind is None:
        return None, None, 0
    if kind == "auto":
        made = auto_augment.get_image_net_policy(max_translate_abs=round(size * _SHIFT))
        steps = max(map(len, made.sub_policies))
        identity = trivial_augment.get_trivial_augment_wide_suite()[-1]
        operations = [*made.augmentations.values(), identity]
        number = {operation.name: at for at, operation in enumerate(operations)}
        idle = (number[identity.name], 0, 1.0)
        rows = [
            [(number[op.name], strength or 0, chance) for op, chance, strength in sub]
            + [idle] * (steps - len(sub))
            for sub in made.sub_policies
        ]
        policy = _dali.policy_of(rows, idle=idle[0], independent=False)
        return operations, policy, made.num_magnitude_bins
    if kind == "trivial":
        operations = trivial_augment.get_trivial_augment_wide_suite(
            max_translate_abs=_TRIVIAL_SHIFT
        )
        one = [[(op, bin, 1.0)] for op in range(len(operations)) for bin in range(_BINS)]
        return operations, _dali.policy_of(one, idle=0, independent=True), _BINS
    operations = rand_augment.get_rand_augment_suite(max_translate_abs=round(size * _SHIFT))
    rows = [[(op, _RAND_BIN, 1.0)] * _RAND_STEPS for op in range(len(operations))]
    return operations, _dali.policy_of(rows, idle=0, independent=True), _BINS


def _xy(pairs: Any) -> _dali.Floats:
    """(x, y) as DALI has it: (y, x)."""
    return np.ascontiguousarray(pairs[:, ::-1], np.float32)


def encoded(images: Ragged) -> Any:
    """One DALI batch that views the bytes: the buffer must outlive it, DALI does not hold it."""
    edges = images.offsets.tolist()
    views = [backend.TensorCPU(images.data[at:end]) for at, end in itertools.pairwise(edges)]
    return backend.TensorListCPU(views, contiguous=False)  # else it would copy them


@pipeline_def
def decoding(gpu: bool, source: Callable[[Any], tuple[Any]]) -> Any:
    """Whole images, and nothing else done to them."""
    (images,) = fn.external_source(source=source, num_outputs=1, batch=True, batch_info=True)
    return fn.decoders.image(images, device="mixed" if gpu else "cpu")
