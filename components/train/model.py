"""The networks a training may use, and the form in which every one of them is served.

A model takes `float32[batch, 3, height, width]`, RGB, values 0..255 as decoded: it normalises by
itself, so whoever serves it only resizes. It answers with `float32[batch, classes]`, logits.
"""

from __future__ import annotations

import importlib
import itertools

import torch
from torch import nn

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""ImageNet's channel statistics on the scale 0..255."""


class UnknownModelError(ValueError):
    """No network of that name can be built here."""


class Classifier(nn.Module):
    """A network with its normalisation in front."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((image - self.mean) / self.std)
        return logits


class Residual(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one; halves the side and widens the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.side = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(image) + self.side(image))


class ConvNet(nn.Sequential):
    """A small residual network for two CPU cores: about 0.55 million parameters."""

    def __init__(self, classes: int, *, widths: tuple[int, ...] = (24, 48, 96, 160)) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        layers += [Residual(a, b) for a, b in itertools.pairwise(widths)]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1)]
        super().__init__(*layers, nn.Linear(widths[-1], classes))


def build_model(name: str, classes: int) -> Classifier:
    """A fresh network with random weights: `convnet`, or any name of `torchvision.models`.

    Raises:
        UnknownModelError: No such name, or torchvision is needed and cannot be imported.
    """
    if name == "convnet":
        return Classifier(ConvNet(classes))
    try:
        models = importlib.import_module("torchvision.models")
    except Exception as error:  # a torchvision of another build raises RuntimeError on import
        raise UnknownModelError(
            f"train.model={name!r}: that is not 'convnet', and torchvision cannot be imported "
            f"({error}); use train.model=convnet or install a torchvision that fits this torch"
        ) from error
    try:
        return Classifier(models.get_model(name, weights=None, num_classes=classes))
    except ValueError as error:
        raise UnknownModelError(
            f"train.model={name!r}: expected 'convnet' or a name of torchvision.models ({error})"
        ) from error
