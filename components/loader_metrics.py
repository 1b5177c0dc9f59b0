"""What a loader did between two looks at its `stats()`, as metrics of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def loader_metrics(
    before: Mapping[str, Any], after: Mapping[str, Any], *, elapsed_s: float | None = None
) -> dict[str, float]:
    """Rates and shares over an interval; what cannot be told is left out.

    Args:
        before: `stats()` at its start; `{}` at the first look.
        after: `stats()` at its end.
        elapsed_s: Seconds between the two; None reads them from the loader's own clock, which
            starts with the first batch.

    Returns:
        loader/samples_per_s, loader/mb_per_s (10^6 bytes read per second), loader/network_mb_per_s,
        loader/wait_percent (time that the consumer waited), loader/decode_busy_percent and
        loader/read_busy_percent (of the threads' time), loader/cache_hit_percent,
        loader/held_mb; and sums since the loader was made: loader/retries, loader/hedges,
        loader/bad_samples.
    """

    def spent(name: str) -> float:
        return float(after.get(name, 0)) - float(before.get(name, 0))

    if elapsed_s is None:
        elapsed_s = _clock_s(after) - _clock_s(before)
    found: dict[str, float] = {}
    if elapsed_s > 0:
        found["loader/samples_per_s"] = spent("samples") / elapsed_s
        found["loader/mb_per_s"] = spent("bytes") / 1e6 / elapsed_s
        found["loader/wait_percent"] = min(100.0, 100 * spent("wait_s") / elapsed_s)
        if "network_bytes" in after:
            found["loader/network_mb_per_s"] = spent("network_bytes") / 1e6 / elapsed_s
    threads_s = sum(spent(name) for name in ("read_s", "decode_s", "full_s", "idle_s"))
    if threads_s > 0:
        found["loader/read_busy_percent"] = 100 * spent("read_s") / threads_s
        found["loader/decode_busy_percent"] = 100 * spent("decode_s") / threads_s
    if looked := spent("cache_hits") + spent("cache_misses"):
        found["loader/cache_hit_percent"] = 100 * spent("cache_hits") / looked
    if "held_bytes" in after:
        held = sum(after.get(name, 0) for name in ("held_bytes", "window_bytes", "index_bytes"))
        found["loader/held_mb"] = held / 1e6
    for name in ("retries", "hedges"):
        if name in after:
            found[f"loader/{name}"] = float(after[name])
    if "bad_samples" in after:
        found["loader/bad_samples"] = float(len(after["bad_samples"]))
    return found


def _clock_s(stats: Mapping[str, Any]) -> float:
    """Seconds since a loader's first batch was asked for."""
    rate = stats.get("samples_per_s", 0.0)
    return float(stats["samples"] / rate) if rate else 0.0
