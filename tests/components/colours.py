"""A small network whose answers can be foreseen: it names the strongest channel of `blobs`."""

from __future__ import annotations

from pathlib import Path

import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

from tests.components import blobs

SIZE = 16


class Colours(nn.Module):
    """Logits from each channel's mean, and a convolution of fixed noise, so that sums matter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.noise = nn.Conv2d(3, len(blobs.CLASSES), 3)
        order = [blobs.CHANNEL[name] for name in blobs.CLASSES]
        self.register_buffer("order", torch.tensor(order))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        strong = image.mean((2, 3)).index_select(1, self.order)
        return strong / 20 + self.noise(image / 255).mean((2, 3)) / 10


def save(folder: Path, *, seed: int = 0, **metadata: object) -> str:
    """The model in the form train logs it; returns its folder, which is a URI too."""
    float32 = np.dtype("float32")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, 3, SIZE, SIZE))]),
        outputs=Schema([TensorSpec(float32, (-1, len(blobs.CLASSES)))]),
    )
    mlflow.pytorch.save_model(
        Colours(seed).eval(),
        folder,
        signature=signature,
        input_example=np.zeros((2, 3, SIZE, SIZE), np.float32),
        pip_requirements=["torch"],
        metadata={"classes": blobs.CLASSES, "image_size": SIZE, **metadata},
    )
    return str(folder)
