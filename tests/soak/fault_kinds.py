"""What the network does to a loader, by kind, and what must come of it.

A fault that passes leaves no trace: the same samples, in the same order, with the same bytes. One
that lasts is one error, of the right class, which names the shard.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import tarpon

from tests.servers import faults
from tests.servers.faults import Fault, Rule

LEAST = 2000  # bytes of a range that is asked for samples; a shorter one is a probe for the size
BODY_LEAST, BODY_MOST = 1000, 400_000  # of the lists and indexes, of the longest ranges
CHANCE = 0.15

Draw = Callable[[random.Random, int], Fault]  # of a body of so many bytes


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault.

    Attributes:
        fault: Draws one.
        error: What the loader raises; None: nothing, its samples are what they always are.
        others: Draws of faults that all requests meet by chance, each in `chance` of them; None:
            `fault` again.
        anywhere: Shard lists and indexes may meet it, not only ranges of tars.
        timeout_s: The loader's.
    """

    name: str
    fault: Draw
    error: type[tarpon.TarponError] | None = None
    others: tuple[Draw, ...] | None = None
    chance: float = CHANCE
    anywhere: bool = True
    timeout_s: float = 20

    @property
    def expected(self) -> str:
        return "the same samples" if self.error is None else self.error.__name__

    def rules(self, rng: random.Random, shard: str, requests: int) -> list[Rule]:
        """Rules for one trial, of which "certain" happens.

        Args:
            shard: The tar that meets it, without its suffix.
            requests: About how many ranges of LEAST bytes are asked of it. How ranges merge is a
                matter of time, and the last ones are read ahead for an epoch that nobody reads:
                only half of them are sure to come and to matter.
        """
        tar = rf"/{shard}\.tar$"
        if self.error is not None:
            skip = rng.randint(1, requests // 2)  # at first all is well
            fault = self.fault(rng, BODY_LEAST)
            return [Rule(name="certain", fault=fault, path=tar, range_bytes=LEAST, skip=skip)]
        fault = self.fault(rng, BODY_LEAST)
        beside = [rf"/{shard}\.idx$", r"\.json$"]
        if self.anywhere and rng.random() < 0.3:
            certain = Rule(name="certain", fault=fault, path=rng.choice(beside), nth=(1,))
        else:
            nth = (rng.randint(1, requests // 2),)
            certain = Rule(name="certain", fault=fault, path=tar, range_bytes=LEAST, nth=nth)
        path = r"\.(tar|idx|json)$" if self.anywhere else r"\.tar$"
        draws = (self.fault,) if self.others is None else self.others
        by_chance = [
            Rule(
                name=f"by chance {number}",
                fault=draw(rng, rng.choice([BODY_LEAST, BODY_MOST])),
                path=path,
                probability=self.chance,
                seed=rng.randrange(1 << 30),
            )
            for number, draw in enumerate(draws)
        ]
        return [certain, *by_chance]


def _latency(rng: random.Random, _: int) -> Fault:
    return faults.latency(rng.uniform(0.02, 0.3))


def _reset(rng: random.Random, most: int) -> Fault:
    return faults.reset(rng.randrange(most))


def _close(rng: random.Random, most: int) -> Fault:
    return faults.close(rng.randrange(most))


def _stall(rng: random.Random, most: int) -> Fault:
    return faults.stall(rng.randrange(most))


def _pause(rng: random.Random, most: int) -> Fault:
    return faults.stall(rng.randrange(most), seconds=rng.uniform(0.05, 0.5))


def _trickle(rng: random.Random, most: int) -> Fault:
    return faults.trickle(rng.randrange(most), bytes_per_s=rng.randrange(200_000, 2_000_000))


def _slow_start(rng: random.Random, _: int) -> Fault:
    return faults.slow_start(bytes_per_s=rng.randrange(20_000, 200_000))


def _slow_down(rng: random.Random, _: int) -> Fault:
    return faults.slow_down(rng.choice([None, 0, 1]))


def _internal_error(*_: object) -> Fault:
    return faults.internal_error()


def _reset_before_reply(*_: object) -> Fault:
    return faults.reset_before_reply()


def _close_before_reply(*_: object) -> Fault:
    return faults.close_before_reply()


def _refuse(rng: random.Random, _: int) -> Fault:
    return faults.refuse(rng.uniform(0.1, 0.5))


def _garbage(*_: object) -> Fault:
    return faults.garbage()


def _cut_headers(*_: object) -> Fault:
    return faults.cut_headers()


def _wrong_range(rng: random.Random, _: int) -> Fault:
    return faults.wrong_range(rng.choice([1, 512, 4096]))


def _shorter(rng: random.Random, _: int) -> Fault:
    return faults.other_length(-rng.randrange(1, LEAST))


def _longer(rng: random.Random, _: int) -> Fault:
    return faults.other_length(rng.randrange(1, 1024))  # tars end in as many zeros


def _any(rng: random.Random, most: int) -> Fault:
    return rng.choice(_PASSING)(rng, most)


_PASSING = (
    *(_latency, _reset, _close, _pause, _trickle, _slow_start, _slow_down, _internal_error),
    *(_reset_before_reply, _close_before_reply, _refuse, _garbage, _cut_headers),
)

KINDS = [
    Kind(name="latency", fault=_latency, chance=0.5),
    Kind(name="reset in a body", fault=_reset),
    Kind(name="body cut off", fault=_close),
    Kind(name="stall", fault=_stall, others=(), anywhere=False, timeout_s=4),
    Kind(name="pause in a body", fault=_pause),
    Kind(name="trickle", fault=_trickle, chance=0.05),
    Kind(name="slow start", fault=_slow_start),
    Kind(name="503 SlowDown", fault=_slow_down, chance=0.05),
    Kind(name="500 InternalError", fault=_internal_error),
    Kind(name="reset before the reply", fault=_reset_before_reply),
    Kind(name="closed before the reply", fault=_close_before_reply),
    Kind(name="connections refused", fault=_refuse, chance=0.03),
    Kind(name="reply that is no HTTP", fault=_garbage),
    Kind(name="headers cut off", fault=_cut_headers),
    Kind(name="another Content-Range", fault=_wrong_range, anywhere=False),
    Kind(name="206 of fewer bytes", fault=_shorter, anywhere=False),
    Kind(name="206 of more bytes", fault=_longer, anywhere=False),
    Kind(name="everything at once", fault=_any, others=_PASSING, chance=0.02),
    Kind(name="changed object", fault=lambda *_: faults.changed(), error=tarpon.StoreError),
    Kind(
        name="changed object, If-Match unknown",
        fault=lambda *_: faults.other_etag(),
        error=tarpon.StoreError,
    ),
    Kind(name="403 AccessDenied", fault=lambda *_: faults.access_denied(), error=tarpon.StoreError),
    Kind(
        name="expired token",
        fault=lambda rng, _: faults.expired_token(rng.choice([400, 403])),
        error=tarpon.StoreError,
    ),
    Kind(name="gone", fault=lambda *_: faults.error(404, "NoSuchKey"), error=tarpon.StoreError),
    Kind(name="Range ignored", fault=lambda *_: faults.ignore_range(), error=tarpon.StoreError),
    Kind(
        name="503 for good",
        fault=_slow_down,
        error=tarpon.LoaderTimeoutError,
        timeout_s=2,
    ),
    Kind(
        name="silence for good",
        fault=lambda *_: faults.stall(0),
        error=tarpon.LoaderTimeoutError,
        timeout_s=2,
    ),
    Kind(
        name="resets for good",
        fault=_reset_before_reply,
        error=tarpon.LoaderTimeoutError,
        timeout_s=2,
    ),
]
