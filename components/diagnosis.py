"""What holds a training up, told from two `stats()` of its loader, and what to do about it.

Looks at figures only: it reads nothing, waits for nothing and knows no torch.

The consumer's wait says whether data is the bottleneck at all. What for is where the loader's
threads spent the interval: reading, decoding, without room for another batch, or without work. The
last two are no cause while the consumer computes: that is how threads that are fast enough pass
their time. So as much of both as fits beside the consumer's own work is set aside.

Where DALI decodes what a loader reads, waiting is split first: for the loader, or for DALI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FINE = 0.05
"""Share of the time that the consumer may wait before data counts as a bottleneck."""

Kind = Literal[
    "compute-bound", "decode-bound", "disk-bound", "network-bound", "room-bound", "starting"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`kind` for a machine, `text` for a person: one sentence with figures and what to do."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interval:
    """What happened between two `stats()`; times in seconds, those of threads summed over them."""

    seconds: float
    wait_s: float
    dali_s: float  # of `wait_s`, what was not spent waiting for the loader's threads
    threads: int
    samples: int
    read_s: float
    decode_s: float
    full_s: float
    idle_s: float
    network_bytes: int
    requests: int
    retries: int
    unplanned: int
    cached: bool  # a cache was asked

    @property
    def waited(self) -> float:
        return self.wait_s / self.seconds

    def share(self, thread_s: float) -> str:
        return f"{min(1.0, thread_s / (self.threads * self.seconds)):.0%}"


def diagnose(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    seconds: float,
    wait_s: float,
    threads: int,
) -> Diagnosis:
    """What the consumer of a loader waited for between two of its `stats()`.

    Args:
        before, after: `stats()` of one Loader, TorchLoader or ImagePipeline, `before` the earlier.
        seconds: Between the two, above 0; a few batches long at least, for what a thread still
            waits for is not in the sums yet.
        wait_s: How much of that the consumer waited for batches.
        threads: The loader's C threads.

    Returns:
        ``compute-bound`` where it waited for less than 5 % of the time: data keeps up. Else what
        took most of the threads' time: ``decode-bound``, ``disk-bound``, ``network-bound``, or
        ``room-bound`` where they had no memory for another batch. Of an ImagePipeline it is
        ``decode-bound`` too where most of the waiting was for DALI. ``starting`` where no batch
        had been handed over before the interval, so that it holds the opening of shards.
        Requests and bytes of the network are the process's, of all its loaders.

    Raises:
        ValueError: `seconds` or `threads` is not above 0.
    """
    if not seconds > 0 or threads < 1:
        raise ValueError(f"diagnose: seconds={seconds!r}, threads={threads!r}, expected above 0")
    it = _between(before, after, seconds=seconds, wait_s=wait_s, threads=threads)
    if not before["samples"]:
        return Diagnosis(
            kind="starting",
            text=f"starting: {it.samples} samples in the first {seconds:.1f} s, of which "
            f"{wait_s:.1f} s were waited for; nothing can be said yet",
        )
    if it.waited < FINE:
        return Diagnosis(
            kind="compute-bound",
            text=f"compute-bound: {it.waited:.1%} of the time waiting for data, which keeps up; "
            "the model is what takes the time",
        )
    return _cause(it)


def _between(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    seconds: float,
    wait_s: float,
    threads: int,
) -> _Interval:
    sums = ("samples", "read_s", "decode_s", "full_s", "idle_s")
    sums += ("network_bytes", "requests", "retries", "unplanned")
    dali_s = 0.0
    if "loader_wait_s" in after:
        dali_s = max(0.0, wait_s - (after["loader_wait_s"] - before["loader_wait_s"]))
    return _Interval(
        seconds=seconds,
        wait_s=wait_s,
        dali_s=dali_s,
        threads=threads,
        cached=after["cache_hits"] + after["cache_misses"] > 0,
        **{name: after[name] - before[name] for name in sums},
    )


def _cause(it: _Interval) -> Diagnosis:
    if it.dali_s > it.wait_s / 2:
        return _dali(it)
    aside = it.threads * max(0.0, it.seconds - it.wait_s + it.dali_s)
    pauses = it.full_s + it.idle_s
    # What is left of both is shared out as they were.
    left = max(0.0, pauses - aside) / pauses if pauses > 0 else 0.0
    reading = _network if it.network_bytes or it.unplanned else _disk
    _, tell = max(
        (
            (it.decode_s, _decode),
            (it.read_s, reading),
            (it.full_s * left, _room),
            (it.idle_s * left, _python),
        ),
        key=lambda pair: pair[0],
    )
    return tell(it)


def _dali(it: _Interval) -> Diagnosis:
    return Diagnosis(
        kind="decode-bound",
        text=f"decode-bound: {it.waited:.0%} of the time waiting for data, "
        f"{it.dali_s / it.seconds:.0%} for DALI, which decodes, crops and augments what the loader "
        "has ready; give DALI more threads if there are idle CPUs, let a GPU decode, or store "
        "smaller images",
    )


def _decode(it: _Interval) -> Diagnosis:
    each = it.decode_s / max(it.samples, 1)
    return Diagnosis(
        kind="decode-bound",
        text=f"decode-bound: {it.waited:.0%} of the time waiting for data, {it.threads} threads "
        f"decoding for {it.share(it.decode_s)} of theirs, {each * 1e3:.1f} ms an image; raise "
        "threads if there are idle CPUs, store smaller images (RandomResizedCrop then decodes "
        "them whole), leave exact=False, or decode on the GPU with tarpon.dali",
    )


def _disk(it: _Interval) -> Diagnosis:
    each = it.read_s / max(it.samples, 1)
    return Diagnosis(
        kind="disk-bound",
        text=f"disk-bound: {it.waited:.0%} of the time waiting for data, {it.threads} threads "
        f"reading local or cached shards for {it.share(it.read_s)} of theirs, "
        f"{each * 1e3:.2f} ms a sample; raise threads so that more reads are under way, or put the "
        "shards on a faster disk",
    )


def _network(it: _Interval) -> Diagnosis:
    rate = it.network_bytes / it.seconds / 1e6
    advice = ["raise Store(connections=) or move nearer to the bucket"]
    if it.unplanned > it.samples * 0.01:
        advice.insert(
            0, f"raise window_samples ({it.unplanned} reads came too early to be planned)"
        )
    if not it.cached:
        advice.append("give a cache_dir, so that later epochs are read here")
    if it.retries > it.requests * 0.05:
        advice.insert(0, f"see why the store refuses ({it.retries} retries)")
    return Diagnosis(
        kind="network-bound",
        text=f"network-bound: {it.waited:.0%} of the time waiting for data, {it.threads} threads "
        f"waiting for bytes for {it.share(it.read_s)} of theirs, {rate:.1f} MB/s in {it.requests} "
        f"requests; {', '.join(advice)}",
    )


def _room(it: _Interval) -> Diagnosis:
    return Diagnosis(
        kind="room-bound",
        text=f"room-bound: {it.waited:.0%} of the time waiting for data, {it.threads} threads "
        f"without memory for another batch for {it.share(it.full_s)} of theirs; raise "
        "buffer_bytes, lower batch_size, or let go of batches sooner",
    )


def _python(it: _Interval) -> Diagnosis:
    return Diagnosis(
        kind="decode-bound",
        text=f"decode-bound: {it.waited:.0%} of the time waiting for data, {it.threads} threads "
        f"without work for {it.share(it.idle_s)} of theirs: what is slow runs in Python; store "
        "JPEG rather than PNG or WebP, do without Json and Npy, or make the transform faster",
    )
