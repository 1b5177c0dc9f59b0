"""Real loaders held up in real ways, and what is said about each."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon

from components.diagnosis import Diagnosis, diagnose
from tests.loader.tars import photo, write_tar

LABEL = {"label": tarpon.Int("cls")}


def shards(folder: Path, count: int, data: Callable[[int], bytes], ext: str = "jpg") -> Path:
    members = []
    for number in range(count):
        members += [(f"{number:04d}.cls", b"1"), (f"{number:04d}.{ext}", data(number))]
    write_tar(folder / "a.tar", members)
    tarpon.index(folder / "a.tar")
    return folder


def watched(
    loader: tarpon.Loader,
    threads: int,
    batches: int,
    use: Callable[[Any], object] = lambda _: None,
    computes_s: float = 0.0,
) -> Diagnosis:
    """What is said of some batches after the first, taken by a consumer that does `use`.

    `computes_s` is what it says it computes on each: no test has the time for it.
    """
    endless: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))
    next(endless)
    before, began, waited = loader.stats(), time.monotonic(), 0.0
    for _ in range(batches):
        start = time.monotonic()
        batch = next(endless)
        waited += time.monotonic() - start
        use(batch)
        del batch
    seconds = time.monotonic() - began + batches * computes_s
    return diagnose(before, loader.stats(), seconds=seconds, wait_s=waited, threads=threads)


def test_large_images_on_one_thread_are_decode_bound(tmp_path: Path) -> None:
    large = photo(1, size=(1500, 1200))
    shards(tmp_path, 16, lambda _: large)
    fields = {"image": tarpon.CenterCrop(224)} | LABEL
    with tarpon.Loader(tmp_path, batch_size=4, fields=fields, threads=1) as loader:
        found = watched(loader, 1, 8)
    assert found.kind == "decode-bound"
    assert "1 threads decoding for" in found.text
    assert "raise threads" in found.text


def test_raw_bytes_of_local_shards_are_disk_bound(tmp_path: Path) -> None:
    shards(tmp_path, 32, lambda number: bytes([number]) * 2**20, "bin")
    fields = {"data": tarpon.Raw("bin")}
    with tarpon.Loader(tmp_path, batch_size=32, fields=fields, threads=1) as loader:
        found = watched(loader, 1, 12)
    assert found.kind == "disk-bound"
    assert "faster disk" in found.text


def test_a_throttled_server_is_network_bound(tmp_path: Path, web_server: Any) -> None:
    rng = np.random.default_rng(0)
    shards(tmp_path, 64, lambda _: rng.bytes(20_000), "bin")
    server = web_server(tmp_path, bytes_per_s=400_000)
    fields = {"data": tarpon.Raw("bin")} | LABEL
    url = f"{server.url}/a.tar"
    options: dict[str, Any] = {"batch_size": 4, "window_samples": 256, "threads": 2}
    with tarpon.Loader([url], fields=fields, **options) as loader:
        found = watched(loader, 2, 12)
    assert found.kind == "network-bound"
    assert "MB/s in" in found.text
    assert "cache_dir" in found.text


def made_up() -> dict[str, Any]:
    """`stats()` of a loader that has handed over a batch of local samples."""
    names = ("read_s", "decode_s", "full_s", "idle_s", "network_bytes", "requests")
    names += ("retries", "unplanned", "cache_hits", "cache_misses")
    return dict.fromkeys(names, 0) | {"samples": 8}


@pytest.mark.parametrize(
    ("wait_s", "loader_wait_s", "kind", "text"),
    [
        (0.3, 0.0, "compute-bound", "3.0% of the time waiting for data, which keeps up"),
        (4.0, 0.2, "decode-bound", "40% of the time waiting for data, 38% for DALI, which"),
        (4.0, 3.9, "disk-bound", "reading local or cached shards for 45%"),
    ],
)
def test_waiting_for_dali_is_told_from_waiting_for_the_loader(
    wait_s: float, loader_wait_s: float, kind: str, text: str
) -> None:
    before = made_up() | {"loader_wait_s": 1.0}
    after = before | {"samples": 108, "read_s": 9.0, "idle_s": 11.0}
    after["loader_wait_s"] += loader_wait_s
    found = diagnose(before, after, seconds=10, wait_s=wait_s, threads=2)
    assert found.kind == kind
    assert text in found.text


def test_the_network_advice_follows_the_figures() -> None:
    before = made_up()
    after = before | {"samples": 108, "read_s": 9.0, "network_bytes": 10**7, "requests": 100}

    def text(**figures: int) -> str:
        found = diagnose(before, after | figures, seconds=10, wait_s=5, threads=1)
        assert found.kind == "network-bound"
        return found.text

    assert "50% of the time" in text()
    assert "1.0 MB/s in 100 requests" in text()
    assert "cache_dir" in text()
    assert "cache_dir" not in text(cache_misses=3)
    assert "window_samples (20 reads" in text(unplanned=20)
    assert "window_samples" not in text(unplanned=1)
    assert "refuses (10 retries)" in text(retries=10)
    assert "refuses" not in text(retries=1)


def test_a_consumer_that_computes_is_compute_bound(tmp_path: Path) -> None:
    shards(tmp_path, 16, lambda number: photo(number))
    fields = {"image": tarpon.CenterCrop(32)} | LABEL
    with tarpon.Loader(tmp_path, batch_size=4, fields=fields, threads=1) as loader:
        found = watched(loader, 1, 6, computes_s=60)
    assert found.kind == "compute-bound"
    assert "keeps up" in found.text


def test_a_consumer_that_keeps_batches_is_room_bound(tmp_path: Path) -> None:
    shards(tmp_path, 32, lambda number: photo(number))
    fields = {"image": tarpon.CenterCrop(64)} | LABEL
    kept: queue.Queue[Any] = queue.Queue()

    def lets_go_late() -> None:
        while (batch := kept.get()) is not None:
            time.sleep(0.2)
            del batch

    with tarpon.Loader(
        tmp_path, batch_size=4, fields=fields, threads=1, buffer_bytes=2**18
    ) as loader:
        writer = threading.Thread(target=lets_go_late)
        writer.start()
        found = watched(loader, 1, 14, kept.put)
        kept.put(None)
        writer.join()
    assert found.kind == "room-bound"
    assert "raise buffer_bytes" in found.text


def test_fields_made_in_python_are_told_from_images_decoded_in_c(tmp_path: Path) -> None:
    large = photo(1, size=(700, 600), format="PNG")
    shards(tmp_path, 16, lambda _: large, "png")
    fields = {"image": tarpon.CenterCrop(64, ext="png")} | LABEL
    with tarpon.Loader(tmp_path, batch_size=4, fields=fields, threads=1) as loader:
        found = watched(loader, 1, 10)
    assert found.kind == "decode-bound"
    assert "runs in Python; store JPEG rather than PNG" in found.text


def test_before_the_first_batch_it_is_starting(tmp_path: Path) -> None:
    shards(tmp_path, 8, lambda number: photo(number))
    with tarpon.Loader(tmp_path, batch_size=4, fields=LABEL) as loader:
        before = loader.stats()
        next(iter(loader))
        found = diagnose(before, loader.stats(), seconds=0.5, wait_s=0.4, threads=2)
    assert found.kind == "starting"
    assert "4 samples in the first 0.5 s" in found.text


@pytest.mark.parametrize(("seconds", "threads"), [(0.0, 1), (float("nan"), 1), (1.0, 0)])
def test_an_interval_of_nothing_is_refused(seconds: float, threads: int) -> None:
    with pytest.raises(ValueError, match="diagnose: seconds="):
        diagnose({}, {}, seconds=seconds, wait_s=0, threads=threads)
