"""Pictures that steps attach to a run. No pyplot: no global state, no display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def image_grid(images: np.ndarray, captions: Sequence[str], *, title: str) -> Figure:
    """Images `uint8[n, height, width, 3]` in a grid, eight to a row, a caption under each."""
    columns = min(8, max(1, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image, caption in zip(axes, images, captions, strict=False):
        axis.imshow(image)
        axis.set_title(caption, fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Loss and accuracy by epoch, one row of `history` per epoch."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axis, names, title in (
        (loss, ("train/loss", "val/loss"), "loss"),
        (accuracy, ("train/accuracy", "val/accuracy"), "accuracy"),
    ):
        for name in names:
            if all(name in row for row in history):
                axis.plot(epochs, [row[name] for row in history], marker=".", label=name)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str], *, title: str) -> Figure:
    """Counts `int[n, n]`, true classes down, predicted classes across; shaded by row share."""
    count = len(classes)
    side = min(14.0, 2.5 + 0.55 * count)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    ticks = range(count)
    axis.set_xticks(ticks, classes, rotation=45, ha="right", fontsize=7)
    axis.set_yticks(ticks, classes, fontsize=7)
    axis.set(title=title, xlabel="predicted", ylabel="true")
    if count <= 30:
        for row, column in np.argwhere(matrix > 0):
            dark = share[row, column] > 0.5
            text = str(matrix[row, column])
            axis.text(
                column, row, text, ha="center", va="center", fontsize=7,
                color="white" if dark else "black",
            )  # fmt: skip
    return figure
