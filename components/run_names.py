"""Names and values as MLflow accepts them. It talks to nobody."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PARAM_CHARS = 6000
KEY_CHARS = 250

_FORBIDDEN = re.compile(r"[^\w./:\- ]")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def params_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as params, sorted; what is too long is cut and ends in an ellipsis."""
    flat: dict[str, str] = {}
    for key, value in sorted(flatten(values).items()):
        text = str(value)
        flat[metric_name(key)] = text if len(text) <= PARAM_CHARS else text[: PARAM_CHARS - 1] + "…"
    return flat


def metric_name(name: str) -> str:
    """A name that MLflow takes for a metric or a param: other characters become `_`."""
    clean = _FORBIDDEN.sub("_", name)
    parts = [part if part.strip(".") else "_" for part in clean.split("/") if part]
    return ("/".join(parts) or "_")[:KEY_CHARS]
