"""Runs a loader over HTTP through every kind of fault, many times, against what it reads without.

    python -m tests.soak.faults --seed 1 --trials 10

Each trial draws a loader and a fault from (kind, seed) and reads two epochs from nginx through the
fault proxy. What comes must be what `tests/soak/fault_kinds.py` says; the proxy's counters must say
that the fault did happen; and it must not take longer than a bound, whatever happens.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import json
import logging
import os
import random
import re
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tarpon

from tests.loader.tars import write_tar
from tests.servers import faultproxy, nginx
from tests.servers.faults import Rule
from tests.soak.fault_kinds import KINDS, LEAST, Kind

SHARDS, SAMPLES = 3, 40  # of each shard
SEEDS, BATCH_SIZES = (0, 1, 2), (5, 8, 16)
EPOCHS = 2  # what is read ahead for the second may fail only there
SLACK_S = 15.0  # beyond the loader's time-out, before a trial counts as hanging


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One trial.

    Attributes:
        fired: How many faults happened.
        ended: "the same samples", or the error's class and message.
        problem: What was not as it must be; None: nothing.
    """

    kind: str
    seed: int
    seconds: float
    fired: int
    ended: str
    problem: str | None


class Bench:
    """Shards behind nginx and a fault proxy. One trial at a time."""

    def __init__(self, folder: Path, proxy: faultproxy.FaultProxy) -> None:
        self.folder, self.proxy = folder, proxy
        self._data = folder / "data"
        self._trials = 0
        self._references: dict[tuple[int, int], list[str]] = {}
        write_shards(self._data)
        self._requests = self._count_requests()

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path) -> Iterator[Bench]:
        with nginx.running(folder) as server, faultproxy.running(server.url) as proxy:
            yield cls(folder, proxy)

    def loader(self, shards: str, seed: int, batch_size: int, timeout_s: float) -> tarpon.Loader:
        """Windows of 48 samples, chunks of a few: a shard is asked for several ranges."""
        return tarpon.Loader(
            shards,
            batch_size=batch_size,
            seed=seed,
            last="keep",
            lanes=4,
            window_samples=48,
            timeout_s=timeout_s,
        )

    def reference(self, seed: int, batch_size: int) -> list[str]:
        """All batches, read from the files."""
        key = (seed, batch_size)
        if key not in self._references:
            with self.loader(str(self._data / "train.json"), *key, timeout_s=20) as loader:
                self._references[key] = list(digests(loader))
        return self._references[key]

    def _count_requests(self) -> dict[str, int]:
        """The least number of long ranges that a trial without faults asks of each shard."""
        least: dict[str, int] = {}
        for seed in SEEDS:
            for batch_size in BATCH_SIZES:
                self.proxy.set_rules()
                with self._served() as url, self.loader(url, seed, batch_size, 20) as loader:
                    got = list(digests(loader))
                assert got == self.reference(seed, batch_size), "without any fault"
                asked = Counter(
                    Path(request.path).stem
                    for request in self.proxy.requests()
                    if request.range and _is_long(request.range)
                )
                for number in range(SHARDS):
                    name = shard_name(number)
                    least[name] = min(least.get(name, asked[name]), asked[name])
        assert min(least.values()) >= 2, f"{least} ranges of each shard, expected a few"
        return least

    @contextlib.contextmanager
    def _served(self) -> Iterator[str]:
        """The list under a URL of its own: no trial meets requests that another left behind."""
        self._trials += 1
        link = self.folder / f"trial-{self._trials}"
        link.symlink_to(self._data)
        try:
            yield f"{self.proxy.url}/{link.name}/train.json"
        finally:
            link.unlink()

    def run_trial(self, kind: Kind, seed: int, *, slack_s: float = SLACK_S) -> Outcome:
        """Read while faults of this kind happen. Hangs are outcomes too."""
        rng = random.Random(f"{kind.name}/{seed}")
        shard = shard_name(rng.randrange(SHARDS))
        order, batch_size = rng.choice(SEEDS), rng.choice(BATCH_SIZES)
        whole = self.reference(order, batch_size)
        rules = kind.rules(rng, shard, self._requests[shard])
        reading = Reading()
        with self._served() as url:
            folder = re.escape(url.rsplit("/", 2)[1])
            self.proxy.set_rules(*(at_folder(rule, folder) for rule in rules))

            def read() -> None:
                with reading, self.loader(url, order, batch_size, kind.timeout_s) as loader:
                    for told in digests(loader):
                        reading.batches.append(told)

            thread = threading.Thread(target=read, name=f"{kind.name}, seed {seed}", daemon=True)
            began = time.monotonic()
            thread.start()
            thread.join(kind.timeout_s + slack_s)
            seconds = time.monotonic() - began
            hangs = thread.is_alive()
            counts = {name: count.fired for name, count in self.proxy.counts().rules.items()}
        problem = "hangs; its stack is on stderr" if hangs else reading.problem(kind, whole, shard)
        if hangs:
            faulthandler.dump_traceback()
        elif problem is None and not counts["certain"]:
            problem = "the fault did not happen"
        return Outcome(
            kind=kind.name,
            seed=seed,
            seconds=seconds,
            fired=sum(counts.values()),
            ended=reading.ended,
            problem=problem,
        )


class Reading:
    """What a loader gave, and how it ended. A context manager around it."""

    def __init__(self) -> None:
        self.batches: list[str] = []
        self.error: BaseException | None = None
        self.ended = "not at all"

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        self.ended = f"{type(error).__name__}: {error}" if error else "the same samples"
        return True

    def problem(self, kind: Kind, whole: list[str], shard: str) -> str | None:
        if self.batches != whole[: len(self.batches)]:
            return "other samples than without faults"
        if kind.error is None:
            if self.error is not None:
                traceback.print_exception(self.error)  # with a hint of where, if it was a bug
                return f"expected the same samples, got {self.ended}"
            return None if self.batches == whole else f"{len(self.batches)} of {len(whole)} batches"
        if self.error is None:
            return f"expected {kind.expected}, and it ended well"
        if type(self.error) is not kind.error:
            return f"expected {kind.expected}, got {self.ended}"
        if f"{shard}.tar" not in str(self.error):
            return f"expected the name of {shard}.tar in {self.ended}"
        return None


def shard_name(number: int) -> str:
    return f"train-{number:06d}"


def at_folder(rule: Rule, folder: str) -> Rule:
    """The rule, for requests below a folder."""
    return replace(rule, path=f"^/{folder}(?=/).*{rule.path}")


def _is_long(asked: str) -> bool:
    first, last = asked.removeprefix("bytes=").split("-")
    return int(last or 1 << 60) - int(first) + 1 >= LEAST


def write_shards(folder: Path) -> None:
    """Shards, indexes and a list; samples of 1 to 20 kB that do not compress."""
    folder.mkdir()
    rng, entries = random.Random(0), []
    for number in range(SHARDS):
        members = []
        for sample in range(number * SAMPLES, (number + 1) * SAMPLES):
            members += [
                (f"{sample:05d}.bin", rng.randbytes(rng.randrange(1000, 20_000))),
                (f"{sample:05d}.cls", str(sample % 10).encode()),
            ]
        write_tar(folder / f"{shard_name(number)}.tar", members)
        entries.append(
            {"url": f"{shard_name(number)}.tar", "nsamples": SAMPLES, "filler": "-" * 400}
        )
    (folder / "train.json").write_text(json.dumps({"shardlist": entries}))
    tarpon.index(folder / "train.json")


def digests(loader: tarpon.Loader) -> Iterator[str]:
    """Of each batch of all epochs: which samples, in which order, with which bytes."""
    for _ in range(EPOCHS):
        for batch in loader:
            told = hashlib.sha256(batch.indices.tobytes())
            for name in sorted(batch):
                told.update(batch[name].offsets.tobytes() + batch[name].data.tobytes())
            yield told.hexdigest()


# ---- many of them --------------------------------------------------------------------------------


def soak(seed: int, trials: int, folder: Path) -> dict[str, Any]:
    """`trials` trials of each kind from `seed` on; a JSON-able report."""
    kinds: dict[str, Any] = {}
    with Bench.running(folder) as bench:
        for kind in KINDS:
            began = time.monotonic()
            done = []
            for number in range(seed, seed + trials):
                # Should even this thread hang, for want of the GIL.
                faulthandler.dump_traceback_later(2 * (kind.timeout_s + SLACK_S), exit=True)
                done.append(bench.run_trial(kind, number))
            faulthandler.cancel_dump_traceback_later()
            kinds[kind.name] = report(kind, done)
            took = time.monotonic() - began
            failed = len(kinds[kind.name]["problems"])
            print(f"soak: {kind.name}: {took:.0f} s, {failed} problems", file=sys.stderr)
        # Clients and their signers stay, one for each time-out; of loaders nothing does.
        names = [thread.name for thread in threading.enumerate() if "seed" in thread.name]
        threads = len(os.listdir("/proc/self/task"))
    return {"seed": seed, "trials": trials, "threads": threads, "hanging": names, "kinds": kinds}


def report(kind: Kind, done: list[Outcome]) -> dict[str, Any]:
    return {
        "expected": kind.expected,
        "fired": sum(outcome.fired for outcome in done),
        "seconds": [round(outcome.seconds, 2) for outcome in done],
        "problems": [
            f"{each.kind}, seed {each.seed}: {each.problem}" for each in done if each.problem
        ],
    }


def main() -> int:
    logging.getLogger("tarpon").setLevel(logging.ERROR)  # long waits are warned of
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=10, help="of each kind")
    parser.add_argument("--only", help="run this one kind of --seed, to look into it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.only:
            [kind] = [kind for kind in KINDS if kind.name == options.only]
            with Bench.running(Path(folder)) as bench:
                print(bench.run_trial(kind, options.seed))
                print(bench.proxy.counts())
                print(*bench.proxy.requests(), sep="\n")
            return 0
        print(json.dumps(soak(options.seed, options.trials, Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
