"""Opens, reads and leaves a loader in every way there is, many times, against a model.

    python -m tests.soak.cycles --seed 1 --cycles 1000

Each cycle draws a dataset, options and a way to read and to leave, all from (seed, cycle). What
comes out must be what the model says: which samples, in which order, with which content; pixels
must be those that the same (sample, position) gave before. Threads, open files and memory must not
grow. The order is the plain Python one of tests/loader/order_model.py, for the lanes and windows
that the loader's state names.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tarpon
from tarpon._order import Order

from tests.loader.order_model import model as whole_epoch
from tests.soak.sets import CROPS, FIELDS, Set, make

HANG_S = 300  # a cycle takes milliseconds
ALLOWED_RSS_MIB = 24  # glibc keeps arenas; 100,000 cycles that leak one block of 256 bytes pass it
SEEDS, EPOCHS = 3, 3
REMEMBERED = 10_000  # orders, and pixels
SIGNAL = signal.SIGUSR1

Saved = tuple[dict[str, Any], int, int]  # a state, its epoch and position


class Interrupt(BaseException):
    """What the consumer's signal handler raises, as Ctrl-C does; once, and only while `due`."""

    due = False


def on_signal(*_: object) -> None:
    if Interrupt.due:
        Interrupt.due = False
        raise Interrupt


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One cycle's loader."""

    of: Set
    fields: dict[str, tarpon.Field]
    named: bool  # False: fields=None
    shuffle: bool
    seed: int
    batch_size: int
    rank: int
    world_size: int
    last: str
    lanes: int | None
    window_samples: int | str | None
    substitute: bool
    threads: int
    buffer_bytes: int | None

    def open(self) -> tarpon.Loader:
        return tarpon.Loader(
            self.of.shards,
            batch_size=self.batch_size,
            fields=self.fields if self.named else None,
            shuffle=self.shuffle,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            last=self.last,
            lanes=self.lanes,
            window_samples=self.window_samples,
            on_bad_sample="substitute" if self.substitute else "raise",
            threads=self.threads,
            buffer_bytes=self.buffer_bytes,
            timeout_s=HANG_S / 3,
        )

    @property
    def whole(self) -> int:
        return self.batch_size * self.world_size

    def count_at(self, position: int) -> int:
        left = len(self.of.samples) - position
        if left <= 0 or (self.last == "drop" and left < self.whole):
            return 0
        return min(left, self.whole) if self.last == "keep" else self.whole


def draw(rng: random.Random, sets: list[Set]) -> Plan:
    of = rng.choice(sets)
    world_size = rng.choice([1, 1, 1, 2, 3])
    last = rng.choice(["drop", "pad", "keep"] if world_size == 1 else ["drop", "pad"])
    most = len(of.samples) // world_size if last == "drop" else 40
    if most == 0:
        world_size, most = 1, 1
    named = rng.random() < 0.9 or 0 in of.unreadable
    names = rng.sample(sorted(FIELDS), rng.randint(1, 3))
    every = {extension: tarpon.Raw(extension) for extension in of.samples[0]}
    window_samples = rng.choice([None, None, "all", 7, 20])
    return Plan(
        of=of,
        fields={name: FIELDS[name] for name in names} if named else every,
        named=named,
        shuffle=rng.random() < 0.8,
        seed=rng.randrange(SEEDS),
        batch_size=rng.randint(1, min(most, rng.choice([4, 40]))),
        rank=rng.randrange(world_size),
        world_size=world_size,
        last=last,
        lanes=None if window_samples == "all" else rng.choice([None, None, 1, 3, 4]),
        window_samples=window_samples,
        substitute=rng.random() < 0.5,
        threads=rng.randint(1, 4),
        buffer_bytes=rng.choice([None, None, 1 << 20]),
    )


def forget(known: dict[Any, Any]) -> None:
    """All of it once it is large: memory that grows here must not hide what grows elsewhere."""
    if len(known) > REMEMBERED:
        known.clear()


class Model:
    """What must come out; remembers orders, pixels and states over all cycles."""

    def __init__(self) -> None:
        self._orders: dict[tuple[Order, int], list[int]] = {}
        self._pixels: dict[tuple[object, ...], int] = {}
        self.states: dict[tuple[object, ...], Saved] = {}

    def order(self, order: Order, epoch: int) -> list[int]:
        key = (order, epoch)
        if key not in self._orders:
            forget(self._orders)
            self._orders[key] = (
                whole_epoch(order, epoch) if order.shuffle else list(range(order.samples))
            )
        return self._orders[key]

    def expect(
        self, plan: Plan, order: Order, epoch: int, start: int
    ) -> tuple[list[int], list[int], type[Exception] | None]:
        """Positions and samples of this rank's batch at `start`, and what it raises instead."""
        total, count = order.samples, plan.count_at(start)
        positions = list(range(start, start + count))
        if order.shuffle and order.lanes % plan.world_size == 0:
            positions = [p for p in positions if p % plan.world_size == plan.rank]
        else:
            share = count // plan.world_size
            positions = positions[plan.rank * share : (plan.rank + 1) * share]
        sample_at = self.order(order, epoch)
        samples, raises = [], None
        for position in positions:
            for candidate in candidates(order, position % total):
                sample = sample_at[candidate]
                if sample in plan.of.unreadable:
                    return positions, [], plan.of.error
                if not any(plan.of.bad(sample, *field) for field in plan.fields.items()):
                    break
                if not plan.substitute:
                    raises = tarpon.BadSampleError
                    break
            samples.append(sample)
        return positions, samples, raises

    def check(self, plan: Plan, order: Order, batch: tarpon.Batch, epoch: int, start: int) -> None:
        positions, samples, raises = self.expect(plan, order, epoch, start)
        assert raises is None, f"a batch, expected {raises}"
        assert (batch.epoch, batch.step) == (epoch, start // plan.whole)
        assert batch.indices.tolist() == samples
        assert batch.sample_keys == [f"{sample:05d}" for sample in samples]
        assert batch.valid.tolist() == [p < len(plan.of.samples) for p in positions]
        self.check_content(plan, batch, positions)

    def check_content(self, plan: Plan, batch: tarpon.Batch, positions: list[int]) -> None:
        assert list(batch) == list(plan.fields)
        for name, field in plan.fields.items():
            column = batch[name]
            for slot, sample in enumerate(batch.indices.tolist()):
                if name in CROPS:
                    key = (plan.of.twin, name, sample, plan.seed, batch.epoch, positions[slot])
                    self.check_pixels(key[:3] if name == "center" else key, column[slot])
                    continue
                data = plan.of.samples[sample][field.extensions[0]]
                if isinstance(field, tarpon.Int):
                    assert column[slot] == int(data)
                elif isinstance(field, tarpon.Text):
                    assert column[slot] == data.decode()
                else:
                    assert bytes(column[slot]) == data

    def check_pixels(self, key: tuple[object, ...], pixels: Any) -> None:
        digest = zlib.crc32(np.ascontiguousarray(pixels))
        forget(self._pixels)
        assert self._pixels.setdefault(key, digest) == digest, f"other pixels for {key}"


def order_of(loader: tarpon.Loader) -> Order:
    """What the loader's public state says of its order."""
    state: dict[str, Any] = dict(loader.state_dict())
    assert state["order"] == 2
    keys = ("shuffle", "seed", "samples", "chunk", "lanes", "window")
    return Order(**{key: state[key] for key in keys})


def candidates(order: Order, position: int) -> Iterator[int]:
    """`position` and those whose samples may stand in: its lane, round once, then all others."""
    lane = range(position % order.lanes, order.samples, order.lanes)
    at = lane.index(position)
    yield from [*lane[at:], *lane[:at]]
    yield from ((position + 1 + ahead) % order.samples for ahead in range(order.samples))


def load_one(plan: Plan, saved: Saved, loader: tarpon.Loader) -> bool:
    """Load a state of the same samples and seed; refused when it is of lanes not asked for."""
    state, mine = saved[0], loader.state_dict()
    asked = {"lanes": plan.lanes, "window": plan.window_samples}
    if plan.shuffle:
        fixed = [key for key, value in asked.items() if value is not None]
        if plan.window_samples == "all":
            fixed = ["lanes", "window"]
    else:
        fixed = []  # one sample after another, whatever was asked for
    if all(state[key] == mine[key] for key in fixed):
        loader.load_state_dict(state)
        return True
    try:
        loader.load_state_dict(state)
    except tarpon.StateMismatchError:
        assert loader.state_dict() == mine
        return False
    raise AssertionError(f"a state of {state} was loaded into {mine}")


def read(plan: Plan, model: Model, loader: tarpon.Loader, rng: random.Random) -> list[Any]:
    """Iterate, seek and ask for single batches; what was kept is returned with its positions."""
    kept: list[Any] = []
    key = (plan.of.name, plan.shuffle, plan.seed)
    epoch, position = 0, 0
    if key in model.states and rng.random() < 0.5 and load_one(plan, model.states[key], loader):
        _, epoch, position = model.states[key]
    order = order_of(loader)
    most = rng.choice([0, 1, 2, 5, 1000])
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.3:
            epoch, position = rng.randrange(EPOCHS), 0
            loader.set_epoch(epoch)
        if plan.count_at(position) == 0:
            epoch, position = epoch + 1, 0
        if epoch >= EPOCHS:  # there is no end of epochs; the model's memory has one
            epoch, position = 0, 0
            loader.set_epoch(0)
        iterator, done = iter(loader), 0
        while True:
            over = plan.count_at(position) == 0
            raises = None if over else model.expect(plan, order, epoch, position)[2]
            try:
                batch = next(iterator, None)
            except (tarpon.TarponError, ValueError) as error:
                if raises is None or not isinstance(error, raises):
                    raise
                break
            assert raises is None, f"nothing raised, expected {raises}"
            if batch is None:
                assert over, f"no batch at epoch {epoch}, position {position}"
                epoch, position = epoch + 1, 0
                break
            model.check(plan, order, batch, epoch, position)
            if plan.buffer_bytes is None and rng.random() < 0.1:
                kept.append((batch, model.expect(plan, order, epoch, position)[0]))
            position = min(position + plan.whole, len(plan.of.samples))
            done += 1
            if done >= most:
                break
            if rng.random() < 0.02:
                seek(plan, order, model, loader, rng)
        if rng.random() < 0.5:
            iterator.close()  # type: ignore[attr-defined]
        del iterator
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (epoch, position)
        if epoch < EPOCHS:
            model.states[key] = (json.loads(json.dumps(state)), epoch, position)
    return kept


def seek(plan: Plan, order: Order, model: Model, loader: tarpon.Loader, rng: random.Random) -> None:
    """A batch from anywhere, which moves nothing."""
    epoch, step = rng.randrange(EPOCHS), rng.randrange(len(loader))
    raises = model.expect(plan, order, epoch, step * plan.whole)[2]
    try:
        model.check(plan, order, loader.batch(epoch, step), epoch, step * plan.whole)
    except (tarpon.TarponError, ValueError) as error:
        if raises is None or not isinstance(error, raises):
            raise


def read_disturbed(
    plan: Plan, model: Model, loader: tarpon.Loader, rng: random.Random, how: str
) -> str:
    """Iterate while a signal handler raises, or another thread closes; says how that ended."""
    main, order = threading.get_ident(), order_of(loader)
    disturb = loader.close if how == "closed" else lambda: signal.pthread_kill(main, SIGNAL)
    other = threading.Timer(rng.random() * 0.003, disturb)
    Interrupt.due = how == "interrupted"
    try:
        other.start()
        for batch in loader:
            model.check(plan, order, batch, 0, batch.step * plan.whole)
        while Interrupt.due:  # the signal may still be on its way
            time.sleep(0.001)
    except ValueError as error:
        if how != "closed" or "closed" not in str(error):
            raise
    except Interrupt:
        pass
    finally:
        Interrupt.due = False
        other.join()
    if how == "closed":
        return how
    state = loader.state_dict()  # somewhere; from there it goes on as if nothing had been
    epoch, position = int(state["epoch"]), int(state["position"])
    if plan.count_at(position) == 0:
        epoch, position = epoch + 1, 0
    for batch in loader:
        model.check(plan, order, batch, epoch, position)
        position += plan.whole
    return how


def in_child(loader: tarpon.Loader) -> None:
    """After fork() the child is refused, may close, and does not hang."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            next(iter(loader))
        except RuntimeError as error:
            loader.close()
            os._exit(0 if "made before fork()" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child was not refused"


def cycle(rng: random.Random, sets: list[Set], model: Model) -> str:
    """One loader from open to gone; says how it was read."""
    plan = draw(rng, sets)
    chance = rng.random()
    sound = not plan.of.unreadable and not plan.of.name.endswith("spoiled")
    plain = not set(plan.fields) & set(CROPS)
    loader = plan.open()
    if chance < 0.01:
        in_child(loader)
    if sound and chance < 0.05:
        kept, how = [], read_disturbed(plan, model, loader, rng, "closed")
    elif sound and plain and chance < 0.15:
        kept, how = [], read_disturbed(plan, model, loader, rng, "interrupted")
    else:
        kept, how = read(plan, model, loader, rng), plan.of.name.partition("-")[2]
    if rng.random() < 0.7:
        loader.close()
        if rng.random() < 0.2:
            loader.close()
    del loader
    for batch, positions in kept:  # the memory is still theirs
        model.check_content(plan, batch, positions)
    return how


@dataclass(frozen=True)
class Usage:
    threads: int
    files: int
    rss_mib: float

    @classmethod
    def now(cls) -> Usage:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            threads=len(os.listdir("/proc/self/task")),
            files=len(os.listdir("/proc/self/fd")),
            rss_mib=round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        )


def progress(cycles: int) -> Iterator[int]:
    """The cycles, with a line on stderr every half a minute."""
    began = said = time.monotonic()
    for number in range(cycles):
        if time.monotonic() - said > 30:
            said = time.monotonic()
            left = (said - began) / number * (cycles - number)
            print(f"soak: {number} of {cycles} cycles, {left:.0f} s left", file=sys.stderr)
        yield number


def soak(seed: int, cycles: int, folder: Path) -> dict[str, Any]:
    """Run `cycles` cycles below `folder`; a JSON-able report. Raises at the first thing wrong."""
    sets, model, ways = make(folder), Model(), Counter[str]()
    before = signal.signal(SIGNAL, on_signal)
    warm = max(1, min(1000, cycles // 5))
    usage: list[Usage] = []
    began = time.monotonic()
    try:
        for number in progress(cycles):
            if number % 100 == 0:
                faulthandler.dump_traceback_later(HANG_S, exit=True)
            try:
                ways[cycle(random.Random(f"{seed}/{number}"), sets, model)] += 1
            except Exception as error:
                error.add_note(f"seed {seed}, cycle {number}")
                raise
            if number >= warm and (number - warm) % max(1, (cycles - warm) // 4) == 0:
                usage.append(Usage.now())
        usage.append(Usage.now())
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(SIGNAL, before)
    first, last = usage[0], usage[-1]
    assert last.threads <= first.threads, f"{last.threads} threads, {first.threads} once warm"
    assert last.files <= first.files, f"{last.files} open files, {first.files} once warm"
    grown = last.rss_mib - first.rss_mib
    sanitized = "san.so" in os.environ.get("LD_PRELOAD", "")  # keeps what was freed, on purpose
    assert sanitized or grown <= ALLOWED_RSS_MIB, (
        f"{grown} MiB more memory, expected {ALLOWED_RSS_MIB} at most"
    )
    return {
        "seed": seed,
        "cycles": cycles,
        "seconds": round(time.monotonic() - began, 1),
        "ways": dict(ways.most_common()),
        "threads": [at.threads for at in usage],
        "files": [at.files for at in usage],
        "rss_mib": [at.rss_mib for at in usage],
    }


def main() -> int:
    logging.getLogger("tarpon").setLevel(logging.ERROR)  # substitutes are warned of, by design
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--only", type=int, help="run this one cycle of --seed, to look into it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.only is not None:
                signal.signal(SIGNAL, on_signal)
                rng = random.Random(f"{options.seed}/{options.only}")
                print(cycle(rng, make(Path(folder)), Model()))
                return 0
            print(json.dumps(soak(options.seed, options.cycles, Path(folder))))
        except Exception:
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
