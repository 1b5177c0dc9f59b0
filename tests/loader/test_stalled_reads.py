"""A shard whose reads hang: the time-out names it, Ctrl-C works, and nothing is left when it ends.

Local files never hang, so each scenario runs in a child process under ``stall.c``, which makes
those of a given name hang for as long as a file says so.
"""

from __future__ import annotations

import gc
import http.server
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tarpon

from tests.loader.tars import photo, samples, write_tar

pytestmark = [pytest.mark.slow, pytest.mark.sanitized]

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {"image": tarpon.RandomResizedCrop(16), "label": tarpon.Int("cls")}
STALL_S = 4.0
IN_TIME_S = 5.0  # for what takes a tenth of a second on a calm machine


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shim") / "stall.so"
    source = Path(__file__).with_name("stall.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of ten samples, a, b and c; a list that says so, and indexes beside them."""
    for name, first in (("a", 0), ("b", 10), ("c", 20)):
        write_tar(tmp_path / f"{name}.tar", samples(range(first, first + 10)))
    entry = '{"url": "%s.tar", "nsamples": 10}'
    entries = ", ".join(entry % name for name in "abc")
    (tmp_path / "all.json").write_text(f'{{"shardlist": [{entries}]}}')
    tarpon.index(tmp_path)
    return tmp_path


# ---- what runs in the child ----------------------------------------------------------------------


@contextmanager
def stalled(name: str) -> Iterator[None]:
    flag = Path(os.environ["TARPON_STALL"])
    flag.write_text(name)
    try:
        yield
    finally:
        flag.unlink()


@contextmanager
def stalled_for(seconds: float, name: str) -> Iterator[None]:
    """Stalled until `seconds` have passed, whoever waits for it."""
    flag = Path(os.environ["TARPON_STALL"])
    flag.write_text(name)
    timer = threading.Timer(seconds, flag.unlink)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def wait_until_stalled() -> None:
    seen = Path(os.environ["TARPON_STALL"] + ".seen")
    end = time.monotonic() + 10 * IN_TIME_S
    while not seen.exists():
        assert time.monotonic() < end, "nothing stalled"
        time.sleep(0.002)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def goes_on(loader: tarpon.Loader) -> None:
    """Every batch of the epoch comes, and is the right one."""
    loader.set_epoch(0)
    seen = []
    for batch in loader:
        assert np.array_equal(batch["label"], batch.indices % 10)
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(30))


def timeout_names_the_shard(folder: Path, shuffle: bool, threads_: int) -> None:
    loader = tarpon.Loader(
        folder / "all.json",
        batch_size=5,
        fields=FIELDS,
        shuffle=shuffle,
        threads=threads_,
        timeout_s=0.5,
    )
    goes_on(loader)  # every index is read and every shard open now: only reads are left to stall
    with stalled("/b.tar"):
        for _ in range(2):  # the second one waits for what the first one forgot
            start = time.monotonic()
            with pytest.raises(tarpon.LoaderTimeoutError) as caught:
                list(loader)
            assert 0.5 <= time.monotonic() - start < IN_TIME_S
            assert str(caught.value) == f"no batch within timeout_s=0.5: reading {folder / 'b.tar'}"
    goes_on(loader)
    loader.close()


def timeout_names_the_shard_of_a_png(folder: Path) -> None:
    members = [(f"{n:05d}.png", photo(n, format="PNG")) for n in range(10, 20)]
    write_tar(folder / "b.tar", members)
    tarpon.index(folder / "b.tar", force=True)
    fields = {"image": tarpon.CenterCrop(16)}
    with tarpon.Loader(
        folder / "all.json", batch_size=5, fields=fields, shuffle=False, timeout_s=0.5
    ) as loader:
        assert sum(1 for _ in loader) == 6
        with stalled("/b.tar"):
            batches = iter(loader)
            next(batches)
            next(batches)
            start = time.monotonic()
            with pytest.raises(tarpon.LoaderTimeoutError, match=r"reading .*/b\.tar"):
                next(batches)
            assert 0.5 <= time.monotonic() - start < IN_TIME_S
        assert sum(1 for _ in loader) == 4


def timeout_names_the_index(folder: Path, name: str) -> None:
    loader = tarpon.Loader(
        folder / "all.json", batch_size=5, fields=FIELDS, shuffle=False, timeout_s=0.5
    )
    expected = f"no batch within timeout_s=0.5: reading the index of {folder / 'b.tar'}"
    with stalled(name):
        batches = iter(loader)
        assert [next(batches).step, next(batches).step] == [0, 1]  # shard a comes
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(tarpon.LoaderTimeoutError) as caught:
                next(iter(loader))
            assert 0.5 <= time.monotonic() - start < IN_TIME_S
            assert str(caught.value) == expected
    goes_on(loader)
    loader.close()


def ctrl_c_is_heard(folder: Path) -> None:
    loader = tarpon.Loader(folder / "all.json", batch_size=5, fields=FIELDS, timeout_s=None)
    goes_on(loader)
    sent = []

    def interrupt() -> None:
        wait_until_stalled()
        time.sleep(0.2)  # the consumer waits by now
        sent.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with stalled("/b.tar"):
        other = threading.Thread(target=interrupt)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            list(loader)
        assert time.monotonic() - sent[0] < IN_TIME_S
        other.join()
    goes_on(loader)
    loader.close()


def close_waits_for_the_read(folder: Path) -> None:
    """A second at most: one in the kernel cannot be told to stop."""
    loader = tarpon.Loader(folder / "all.json", batch_size=5, fields=FIELDS, timeout_s=0.3)
    goes_on(loader)
    with stalled("/b.tar"):
        with pytest.raises(tarpon.LoaderTimeoutError):
            list(loader)
        closing = threading.Thread(target=loader.close)
        closing.start()
        closing.join(0.3)
        assert closing.is_alive()
        with pytest.raises(ValueError, match="closed"):  # other threads go on, and are told
            next(iter(loader))
    closing.join(IN_TIME_S)
    assert not closing.is_alive()


def leaving_waits_a_second_at_most(folder: Path) -> None:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("tarpon").addHandler(handler)
    with stalled_for(STALL_S, "/b.tar"):
        start = time.monotonic()
        loader = tarpon.Loader(folder / "all.json", batch_size=5, fields=FIELDS, timeout_s=0.3)
        with pytest.raises(tarpon.LoaderTimeoutError), loader:
            list(loader)
        took = time.monotonic() - start
        kept = tarpon.open(folder)[3]  # others go on
    assert took < STALL_S - 1
    assert kept["cls"] == b"3"
    (message,) = messages
    assert "closed while a thread still reads or decodes; it ends when that does" in message
    del loader
    end = time.monotonic() + IN_TIME_S
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
        time.sleep(0.01)  # run() finds that nothing is left


def run(scenario: str, *arguments: object) -> None:
    """Call a scenario; when it is over no thread and no file of a loader is left."""
    before = threads(), open_files()
    globals()[scenario](*arguments)
    gc.collect()  # what was caught holds the frame that holds the loader
    assert (threads(), open_files()) == before


# ---- the tests ---------------------------------------------------------------------------------


def in_child(shim: Path, folder: Path, scenario: str, *arguments: object) -> None:
    code = (
        "from pathlib import Path; from tests.loader import test_stalled_reads as scenarios; "
        f"scenarios.run({scenario!r}, Path({str(folder)!r}), *{arguments!r})"
    )
    preloaded = f"{os.environ.get('LD_PRELOAD', '')} {shim}".strip()
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": preloaded, "TARPON_STALL": str(folder / "stall")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize(("shuffle", "threads_"), [(False, 1), (True, 1), (True, 2), (True, 3)])
def test_a_stalled_read_times_out_naming_its_shard(
    shim: Path, folder: Path, shuffle: bool, threads_: int
) -> None:
    in_child(shim, folder, "timeout_names_the_shard", shuffle, threads_)


@pytest.mark.parametrize("name", ["/b.tar", "/b.idx"])
def test_a_stalled_index_times_out_naming_its_shard(shim: Path, folder: Path, name: str) -> None:
    in_child(shim, folder, "timeout_names_the_index", name)


def test_a_stalled_read_of_what_pillow_decodes_times_out_too(shim: Path, folder: Path) -> None:
    in_child(shim, folder, "timeout_names_the_shard_of_a_png")


def test_ctrl_c_is_heard_while_a_read_stalls(shim: Path, folder: Path) -> None:
    in_child(shim, folder, "ctrl_c_is_heard")


def test_close_waits_for_a_stalled_read_and_leaves_nothing(shim: Path, folder: Path) -> None:
    in_child(shim, folder, "close_waits_for_the_read")


@pytest.mark.slow
def test_leaving_a_loader_whose_read_hangs_waits_a_second_at_most(shim: Path, folder: Path) -> None:
    in_child(shim, folder, "leaving_waits_a_second_at_most")


def test_ctrl_c_is_heard_between_shards_that_are_indexed(folder: Path) -> None:
    (folder / "a.idx").unlink()
    timer = threading.Timer(
        0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
    )
    many = [
        (str(folder / "a.tar"), -1, -1, False, None, None)
    ] * 300_000  # half a minute of scanning
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tarpon._core.Dataset(many)
    assert time.monotonic() - start < IN_TIME_S
    timer.join()


def test_ctrl_c_is_heard_while_another_thread_reads_the_index(tmp_path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    class Hanging(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            go_on.wait()
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    def read() -> None:
        with pytest.raises(tarpon.StoreError):
            dataset[0]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        shard_list = tmp_path / "train.json"
        entry = {"url": url, "nsamples": 9, "filesize": 1 << 20}
        shard_list.write_text(json.dumps({"wids_version": 1, "shardlist": [entry]}))
        dataset = tarpon.open(shard_list)
        reader = threading.Thread(target=read)
        main = threading.main_thread().ident
        timers = [
            threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)),
            threading.Timer(6 * IN_TIME_S, go_on.set),  # or a failure would hang
        ]
        reader.start()
        assert asked.wait(IN_TIME_S)
        for timer in timers:
            timer.start()
        with pytest.raises(KeyboardInterrupt):
            dataset[0]
        assert not go_on.is_set()
        timers[1].cancel()
        go_on.set()
        reader.join()
        server.shutdown()
