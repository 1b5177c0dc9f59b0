"""What a training process feels of a remote set: the wait for its first batch, and its epochs.

The figures are of `tarpon.Loader` alone, each taken in a fresh process (`benchmarks.remote_probe`);
the set comes from an nginx on the same cores.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.data import DataSet
from benchmarks.members import members
from benchmarks.runner import PeerError, Spread, run_module, served
from tests.servers import faultproxy
from tests.servers.faults import Rule, latency

THEME = "http"
LOAD = 0.65
"""What a consumer asks for in an epoch, as a part of what the loader makes of local shards."""

FIRST, EPOCHS = "first-batch", "epochs"
NAMES = (FIRST, EPOCHS)
_LATENCY_S = 0.05
_FIRST_MOST_S = 0.6
_RATIO_MOST = 1.05
_SHARDS, _SHARDS_QUICK = 1000, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteResult:
    """Each list has a number per round.

    Attributes:
        shards: Of the shard list that the first batch comes from.
        first_s: From ``Loader(...)`` to the first batch in hand.
        requests: What that took, read-ahead included.
        local_s, http_s: From ``Loader(...)`` to the end of an epoch.
        step_s: What the consumer did with each batch of these epochs.
        network: Bytes that came over the network per byte of the shards, in the http epochs.
    """

    data: DataSet
    shards: int
    first_s: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    local_s: list[float] = field(default_factory=list)
    http_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    network: list[float] = field(default_factory=list)

    def ratio(self) -> Spread:
        """How much longer an epoch over HTTP took than the local one of the same round."""
        pairs = zip(self.http_s, self.local_s, strict=True)
        return Spread.of([http / local for http, local in pairs])


def make_list(data: DataSet, shards: int) -> str:
    """A shard list of so many, the set's own over and over; its path below the set's root."""
    name = f"first-{shards}"
    folder = Path(data.root, name)
    if not folder.exists():
        temporary = folder.with_name(f"{name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        counts = Counter(member.shard for member in members(data, "jpg"))
        listed = []
        for number in range(shards):
            shard = number % len(data.shards)
            for path in (data.shards[shard], data.indexes[shard]):
                suffix = Path(path).suffix
                link = temporary / f"train-{number:06d}{suffix}"
                link.symlink_to(os.path.relpath(path, temporary))
            size = os.path.getsize(data.shards[shard])
            url = f"train-{number:06d}.tar"
            listed.append({"url": url, "nsamples": counts[shard], "filesize": size})
        text = json.dumps({"wids_version": 1, "shardlist": listed})
        (temporary / "train.json").write_text(text, encoding="utf-8")
        temporary.rename(folder)
    return f"{name}/train.json"


def run(
    data: DataSet,
    *,
    quick: bool,
    runs: int,
    only: str | None = None,
    tick: Callable[[str], None] = lambda _: None,
) -> RemoteResult:
    """Everything (whose name contains `only`) `runs` times, in turn.

    `tick` is called before each with what is about to run.

    Raises:
        PeerError: A process failed, was handed other samples, or nginx did not start.
    """
    names = [name for name in NAMES if only is None or only in name]
    result = RemoteResult(data=data, shards=_SHARDS_QUICK if quick else _SHARDS)
    listed = make_list(data, result.shards)
    with (
        served(data) as near,
        faultproxy.running(near.url or "", Rule(name="far", fault=latency(_LATENCY_S))) as far,
    ):
        for number in range(runs):
            for name in names:
                tick(f"round {number + 1} of {runs}, {name}")
                if name == FIRST:
                    _first(result, f"{far.url}/{listed}")
                else:
                    _epochs(result, near)
    return result


def _first(result: RemoteResult, url: str) -> None:
    found = _probe(FIRST, shards=url, samples=result.data.samples)
    result.first_s.append(found["first_s"])
    result.requests.append(found["requests"])


def _epochs(result: RemoteResult, near: DataSet) -> None:
    """How fast it can be, then a consumer that asks for less: of local shards, then over HTTP."""
    free = _probe(EPOCHS, shards=near.shards, samples=near.samples, step_s=0.0)
    step_s = free["epoch_s"] / free["batches"] / LOAD
    local = _probe(EPOCHS, shards=near.shards, samples=near.samples, step_s=step_s)
    http = _probe(EPOCHS, shards=near.sources, samples=near.samples, step_s=step_s)
    came = http["network_bytes"] / near.bytes
    if came < 1:
        raise PeerError(f"{EPOCHS}: {came:.2f} of the images came over the network, expected all")
    result.step_s.append(step_s)
    result.local_s.append(local["epoch_s"])
    result.http_s.append(http["epoch_s"])
    result.network.append(came)


def _probe(what: str, **asked: Any) -> dict[str, float]:
    found: dict[str, float] = run_module(
        "benchmarks.remote_probe", {"what": what, **asked}, name=f"{THEME}/{what}"
    )
    return found


def lines(result: RemoteResult) -> list[str]:
    """The section of the page."""
    rows = []
    if result.first_s:
        first, requests = Spread.of(result.first_s), Spread.of(result.requests)
        rows += [
            (
                f"`{FIRST}`: cold, from a train.json of {result.shards:,} shards, "
                f"{_LATENCY_S * 1000:.0f} ms added to each request",
                _spread(first, 1e3, "ms"),
                f"< {_FIRST_MOST_S * 1e3:.0f} ms in the worst process",
                first.high < _FIRST_MOST_S,
            ),
            ("its requests, those of reading ahead included", _spread(requests, 1, ""), "", None),
        ]
    if result.http_s:
        ratio = result.ratio()
        rows += [
            (f"`{EPOCHS}`: local shards", _spread(Spread.of(result.local_s), 1, "s"), "", None),
            ("the same over HTTP", _spread(Spread.of(result.http_s), 1, "s"), "", None),
            (
                "HTTP / local",
                _spread(ratio, 1, ""),
                f"<= {_RATIO_MOST}",
                ratio.median <= _RATIO_MOST,
            ),
            ("the consumer's step", _spread(Spread.of(result.step_s), 1e3, "ms"), "", None),
            ("network bytes / JPEG bytes", _spread(Spread.of(result.network), 1, ""), "", None),
        ]
    return [*_words(result), "", *_table(rows)]


def _words(result: RemoteResult) -> list[str]:
    return [
        "## First batch and epochs over HTTP",
        "",
        "tarpon.Loader, 2 threads, shuffled, batches of 64 crops of 224 x 224 and their labels, "
        "each time in a fresh process after the imports. The first batch comes through a proxy "
        "that makes every request wait; the clock runs from `Loader(...)`, which reads the shard "
        "list, to the batch in hand. An epoch is the first of its process, from `Loader(...)` to "
        f"its last batch, of {result.data.samples:,} images. Its consumer sleeps for a fixed time "
        f"with every batch, as a training step on a GPU would, so that it asks for {LOAD:.0%} of "
        "what the loader made of local shards just before, with nothing else to do; it shows "
        "whether reading over HTTP holds up a consumer whom local shards do not, not what the "
        "loader can do at most. There is no latency and no limit of the link in the epochs.",
    ]


def _table(rows: Sequence[tuple[str, str, str, bool | None]]) -> list[str]:
    met = {True: "reached", False: "**missed**", None: ""}
    return [
        "| what | median (range) | bar |  |",
        "| --- | --- | --- | --- |",
        *(f"| {what} | {found} | {bar} | {met[held]} |" for what, found, bar, held in rows),
    ]


def _spread(spread: Spread, scale: float, unit: str) -> str:
    numbers = [f"{value * scale:.3g}" for value in (spread.median, spread.low, spread.high)]
    return f"{numbers[0]} ({numbers[1]} to {numbers[2]}) {unit}".rstrip()
