"""The processes that train together: who they are, what they tell each other, how long they wait.

Ranks and addresses come from torchrun's environment. With one process everything here is free and
nothing is initialised. It does not know what is trained.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")

TIMEOUT_S = 900
"""Longest wait for another rank; more than the loader's 600 s, whose message says more."""

LAST_WAIT_S = 3600
"""Longest wait for rank 0 to upload a checkpoint or the model, when there is nothing else to do."""


class RanksError(RuntimeError):
    """Another rank has ended or does not answer; its own message says why."""


class Ranks:
    """This process among those that train together.

    Args:
        rank, world_size: This process and how many there are, on all machines.
        local_rank, local_world_size: The same on this machine.
        store: Keys that all ranks see; None where there is one rank.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        local_world_size: int = 1,
        store: Any = None,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size
        self._store = store

    @property
    def first(self) -> bool:
        """Whether this is the one rank that speaks to MLflow and writes."""
        return self.rank == 0

    @property
    def threads(self) -> int | None:
        """CPU threads of this rank, its share of the machine; None: it is alone and may choose."""
        if self.world_size == 1:
            return None
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size)

    def share(self, value: T, what: str) -> T:
        """Rank 0's value, on every rank; `what` names it should it not come."""
        if self.world_size == 1:
            return value
        box = [value]
        with self._named(f"{what} from rank 0"):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T, what: str) -> list[T]:
        """Every rank's value, on every rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        with self._named(what):
            dist.all_gather_object(found, value)
        return found

    def add(self, values: torch.Tensor, what: str) -> torch.Tensor:
        """Sum over all ranks, in place; on a GPU it is only put in the queue."""
        if self.world_size > 1:
            with self._named(what):
                dist.all_reduce(values)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the running statistics of rank 0."""
        if self.world_size > 1:
            with self._named("the running statistics from rank 0"):
                for buffer in model.buffers():
                    dist.broadcast(buffer, src=0)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The network whose gradients are averaged over the ranks as they are made."""
        if self.world_size == 1:
            return model
        device = next(model.parameters()).device
        with self._named("the first weights from rank 0"):
            return nn.parallel.DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def say_done(self, what: str, how: str = "done") -> None:
        """Rank 0: end the others' `wait_for`, and have it return `how`."""
        if self._store is not None:
            self._store.set(f"tarpon/{what}", how)

    def wait_for(self, what: str, *, timeout_s: float = LAST_WAIT_S) -> str:
        """Wait until rank 0 has said that it is done, and how.

        Raises:
            RanksError: It did not within `timeout_s`, or the store of torchrun is gone.
        """
        if self._store is None:
            return "done"
        try:
            self._store.wait([f"tarpon/{what}"], timedelta(seconds=timeout_s))
            return str(self._store.get(f"tarpon/{what}").decode())
        except (RuntimeError, ConnectionError) as error:
            raise RanksError(
                f"rank {self.rank} of {self.world_size}: waited up to {timeout_s:g} s for rank 0 "
                f"to {what} ({_line(error)}); see the message of rank 0"
            ) from error

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.lost(what, error) from error

    def lost(self, what: str, error: BaseException) -> RanksError:
        """The error for an exchange that failed."""
        return RanksError(
            f"rank {self.rank} of {self.world_size}: waiting for {what} failed ({_line(error)}), "
            f"expected an answer of every rank within {TIMEOUT_S} s; a rank that has ended says "
            "why in its own message, one that says nothing hangs"
        )


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks of torchrun's environment, connected as long as the `with` block lasts."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    kind = device.partition(":")[0]
    rank = int(os.environ["RANK"])
    # Plain values go through gloo on a GPU machine too: they wait for no kernel.
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    timeout = timedelta(seconds=TIMEOUT_S)
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        yield Ranks(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank(),
            local_world_size=local_world_size(),
            store=store,
        )
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """This process's number on its machine, as torchrun says; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many of them train on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def world_size() -> int:
    """How many processes train together, as torchrun says; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
