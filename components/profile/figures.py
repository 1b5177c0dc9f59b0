"""The drawn parts of a profile: SVG charts and JPEG thumbnails, as text to put into a page.

Equal input gives equal text: no dates, no random ids, and no display is touched.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from components import sources
from components.store import StoreError

INK, ACCENT, GRID = "#1f2933", "#2f6f8f", "#d9e2ec"

MAX_DOTS = 2000
"""Points in the scatter of sizes; of more samples every k-th is drawn."""

_STYLE: Any = {
    "svg.hashsalt": "tarpon",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
}


def sizes(width: npt.NDArray[np.int64], height: npt.NDArray[np.int64]) -> str:
    """Scatter of width against height, in pixels, as SVG."""
    step = max(1, -(-len(width) // MAX_DOTS))
    with mpl.rc_context(_STYLE):
        figure, axes = _axes("width, pixels", "height, pixels")
        axes.scatter(width[::step], height[::step], s=9, alpha=0.35, color=ACCENT, linewidths=0)
        axes.margins(0.08)
        return _svg(figure)


def histogram(values: npt.NDArray[np.float64], label: str) -> str:
    """Histogram of a quantity, outliers beyond the 99.5th percentile in the last bar, as SVG."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(label, "images")
        if len(values):
            axes.hist(np.minimum(values, np.percentile(values, 99.5)), bins=30, color=ACCENT)
        axes.grid(visible=False, axis="x")
        return _svg(figure)


def thumbnail(uri: str, side: int) -> str | None:
    """A picture, upright and at most `side` pixels a side, as a data URL.

    None when it cannot be read any more: a page is worth having without it.
    """
    try:
        with Image.open(io.BytesIO(sources.read(uri))) as image:
            image.draft("RGB", (2 * side, 2 * side))  # JPEG: decode small, the page needs no more
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
    except (OSError, StoreError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def spread(rows: Sequence[int], count: int) -> list[int]:
    """At most `count` of the rows, evenly spaced, the first among them."""
    step = max(1.0, len(rows) / count)
    return [rows[int(k * step)] for k in range(min(count, len(rows)))]


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.9, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
