"""One run of one case, in a process of its own: warm up, time whole epochs, print JSON.

python -m benchmarks.measure '{"case": ..., "data": ..., "seconds": 1.0, "look": "count"}'
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import psutil

from benchmarks import ABSENT
from benchmarks.data import DataSet

Look = Literal["count", "touch", "check"]
"""What the consumer does with the bytes: take their length, read each one, or make a checksum."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came out of some epochs.

    Attributes:
        samples, bytes: How many, and the bytes handed over (of JPEG or of pixels).
        labels: Sum of the labels; 0 where a case has none.
        crc: Sum of CRC-32s modulo 2^64, for raw bytes, when looked at with "check".
        grey: Sum over images of their mean grey level, for pixels, when looked at with "check".
        network_bytes: What came over the network meanwhile, where a case can tell.
    """

    look: Look = "count"
    samples: int = 0
    bytes: int = 0
    labels: int = 0
    crc: int = 0
    grey: float = 0.0
    touched: int = 0
    network_bytes: int = 0

    def raw(
        self, samples: int, size: int, labels: int, pieces: Callable[[], Iterable[Any]]
    ) -> None:
        """Take samples of `size` bytes together; `pieces` gives the bytes of each."""
        self.samples += samples
        self.bytes += size
        self.labels += labels
        if self.look == "check":
            self.crc += sum(zlib.crc32(piece) for piece in pieces())
        elif self.look == "touch":
            for piece in pieces():
                words = np.frombuffer(piece, np.uint64, len(piece) // 8)
                self.touched ^= int(np.add.reduce(words))

    def pixels(self, samples: int, size: int, images: Callable[[], Any]) -> None:
        """Take decoded images; `images` gives them as one array."""
        self.samples += samples
        self.bytes += size
        if self.look == "check":
            self.grey += float(images().mean()) * samples


class Epoch(Protocol):
    """One pass over the set; made by a peer's ``make(data, **settings)``."""

    def __call__(self, number: int, tally: Tally) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run gave; times are of the timed epochs only, memory of the whole process."""

    samples: int
    bytes: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    labels: int
    crc: int
    grey: float
    epochs: int
    network_bytes: int = 0

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def samples_per_cpu_s(self) -> float:
        return self.samples / max(self.cpu_s, 1e-9)


def _cpu_s() -> float:
    """User and system seconds so far: this process, children that ended, children that run."""
    done = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    alive = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    # the sum of four: theirs, and that of their own children that ended
    return done + sum(sum(times[:4]) for times in alive)


def _peak_bytes() -> int:
    """Peak resident memory of this process and its running children; shared pages count twice."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for line in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
    return total


def measure(epoch: Epoch, *, seconds: float, look: Look) -> Run:
    """Time whole epochs for at least `seconds`, after one that is not timed.

    With ``look="check"`` only one epoch runs, and its checksums are what counts.
    """
    tally = Tally(look=look)
    number = 0
    if look != "check":
        epoch(number, Tally())
        number = 1
    cpu_s, start = _cpu_s(), time.perf_counter()
    while number == 0 or tally.samples == 0 or time.perf_counter() - start < seconds:
        epoch(number, tally)
        number += 1
        if look == "check":
            break
    elapsed, cpu_s = time.perf_counter() - start, _cpu_s() - cpu_s
    return Run(
        samples=tally.samples,
        bytes=tally.bytes,
        seconds=elapsed,
        cpu_s=cpu_s,
        peak_bytes=_peak_bytes(),
        labels=tally.labels,
        crc=tally.crc % 2**64,
        grey=tally.grey / tally.samples,
        epochs=number - (look != "check"),
        network_bytes=tally.network_bytes,
    )


def main() -> None:
    asked = json.loads(sys.argv[1])
    try:
        peer = importlib.import_module(f"benchmarks.peers.{asked['peer']}")
    except ImportError as error:
        print(error, flush=True)
        sys.exit(ABSENT)
    epoch = peer.make(DataSet(**asked["data"]), **asked["settings"])
    run = measure(epoch, seconds=asked["seconds"], look=asked["look"])
    print(json.dumps(asdict(run)), flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler complains of what is killed
    for worker in multiprocessing.active_children():
        worker.kill()  # torch's look for their parent every five seconds only
    os._exit(0)  # some peers take seconds to shut their threads down, or warn while they do


if __name__ == "__main__":
    main()
