"""A short trial of the soak that `make soak` runs for long."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tarpon

from tests.loader.tars import photo, write_tar
from tests.soak.cycles import soak

pytestmark = [pytest.mark.slow, pytest.mark.sanitized]


# A cycle's signal may be heard inside a callback of the garbage collector, where it is lost.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_whatever_is_done_to_a_loader_its_batches_are_right_and_nothing_grows(
    seed: int, tmp_path: Path
) -> None:
    report = soak(seed, 150, tmp_path)
    assert sum(report["ways"].values()) == 150


def test_close_from_another_thread_while_pillow_decodes_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two PNGs is handed to Pillow's threads after close() has stopped them."""
    write_tar(tmp_path / "a.tar", [(f"{i}.png", photo(i, format="PNG")) for i in range(8)])
    loader = tarpon.Loader(tmp_path, batch_size=2, fields={"image": tarpon.CenterCrop(8)})
    next(iter(loader))
    submit = ThreadPoolExecutor.submit

    def closing(pool: ThreadPoolExecutor, *args: Any) -> Future[Any]:
        other = threading.Thread(target=loader.close)
        other.start()
        other.join()
        return submit(pool, *args)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", closing)
    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))
