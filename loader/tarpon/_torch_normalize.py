"""Pixels to numbers for a network, on the device where the batch already is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Normalize:
    """`(image - mean) / std` for a ``TorchLoader``: bytes travel to the GPU, floats are made there.

        loader = tarpon.torch.TorchLoader(
            "train.json",
            batch_size=256,
            fields={"image": tarpon.RandomResizedCrop(224), "label": tarpon.Int("cls")},
            transform=tarpon.torch.Normalize(
                mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), dtype=torch.bfloat16
            ),
        )
        next(iter(loader))["image"]    # bfloat16[256, 3, 224, 224], channels_last, on the GPU

    Computed in float32, one subtraction and one division, and rounded to `dtype` at the end: the
    same bits on every device. Needs no random numbers and keeps no state.

    Args:
        mean, std: Three numbers each, for red, green and blue, 0..255; `std` above 0.
        dtype: Of the result: ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``.
        fields: Names of the images in the batch, ``uint8[B, H, W, 3]`` as ``RandomResizedCrop``
            and ``CenterCrop`` make them by default.

    Returns:
        From a call with a batch: a dict with those fields as ``dtype[B, 3, H, W]`` in
        ``channels_last`` memory, and the others as they were.

    Raises:
        ValueError: `mean`, `std` or `dtype` make no sense; in a call, a field that is missing or
            is no such image.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
        fields: Sequence[str] = ("image",),
    ) -> None:
        self._mean, self._std = tuple(map(float, mean)), tuple(map(float, std))
        if (len(self._mean), len(self._std)) != (3, 3):
            raise ValueError(
                f"mean={mean!r}, std={std!r}, expected three numbers in both: images are RGB"
            )
        if not all(map(math.isfinite, self._mean + self._std)) or min(self._std) <= 0:
            raise ValueError(
                f"mean={mean!r}, std={std!r}, expected finite numbers and std above 0, on the "
                "scale 0..255"
            )
        if dtype not in _DTYPES:
            names = ", ".join(map(str, _DTYPES))
            raise ValueError(f"dtype={dtype!r}, expected one of {names}")
        self._dtype = dtype
        self._fields = (fields,) if isinstance(fields, str) else tuple(fields)
        self._constants: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {name: self._normalized(name, batch) for name in self._fields}

    def _normalized(self, name: str, batch: dict[str, Any]) -> torch.Tensor:
        image = batch.get(name)
        if not isinstance(image, torch.Tensor):
            raise ValueError(
                f"Normalize: field {name!r} is {_describe(image)}, expected a tensor uint8[B, H, "
                f"W, 3]; the batch has {sorted(batch)}; name the images in `fields`"
            )
        if image.dtype != torch.uint8 or image.dim() != 4 or image.shape[3] != 3:
            raise ValueError(
                f"Normalize: field {name!r} is {image.dtype}{list(image.shape)}, expected "
                "torch.uint8[B, H, W, 3]; leave dtype, layout, mean and std of the loader's field "
                "at their defaults, or do without Normalize"
            )
        mean, std = (constant.repeat(image.shape[2]) for constant in self._on(image.device))
        # By whole rows: a CPU has no vectors of three.
        rows = image.flatten(2).to(torch.float32).sub_(mean).div_(std)
        return rows.to(self._dtype).reshape(image.shape).permute(0, 3, 1, 2)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._constants:
            # From pageable memory: done when it returns, so that any stream may use them.
            made = (torch.tensor(one, dtype=torch.float32) for one in (self._mean, self._std))
            mean, std = (tensor.to(device) for tensor in made)
            self._constants[device] = mean, std
        return self._constants[device]

    def __repr__(self) -> str:
        return (
            f"Normalize(mean={self._mean}, std={self._std}, dtype={self._dtype}, "
            f"fields={self._fields})"
        )


def _describe(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
