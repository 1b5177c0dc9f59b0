"""`tarpon stats`, `bench` and `view`: what they say is so, on shards whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon
from PIL import Image
from tarpon._order import Order
from tarpon._stats import mixes, plan
from tarpon.cli import main

from tests.loader.tars import samples, write_tar

CLASSES, EACH = 8, 100


@pytest.fixture(scope="module")
def class_sorted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One class a shard, as a folder of classes is packed by people in a hurry."""
    folder = tmp_path_factory.mktemp("sorted")
    for label in range(CLASSES):
        members = [
            (f"{label}-{number:04d}.{ext}", data)
            for number in range(EACH)
            for ext, data in (("cls", b"%d\n" % label), ("bin", bytes(1000 + number)))
        ]
        write_tar(folder / f"{label}.tar", members)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_stats_counts_what_is_there(class_sorted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "stats", str(class_sorted))
    assert (found["samples"], found["shards"]) == (800, 8)
    assert found["bytes"] == sum(path.stat().st_size for path in class_sorted.glob("*.tar"))
    payload = found["components"]["bin"]
    assert payload == {"share": 1, "bytes_min": 1000, "bytes_mean": 1049.5, "bytes_max": 1099}
    assert "shuffle" not in found
    assert main(["stats", str(class_sorted)]) == 0
    assert "800 samples in 8 shards" in capsys.readouterr().out


def test_stats_tells_a_good_shuffle_from_none(
    class_sorted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, "stats", "--shuffle", "--batch-size", "32", str(class_sorted))["shuffle"]
    assert found["label"] == "cls"
    ours, whole, none = (
        found["mixes"][name] for name in ("this order", "all at once", "no shuffle")
    )
    assert none["classes"] < 1.5  # a batch of one class, or two at the edge of a shard
    assert whole["classes"] > 7.5
    assert ours["classes"] > 7
    assert none["imbalance"] > 20
    assert ours["imbalance"] < 2
    chunk = found["order"]["chunk"]
    assert whole["same_chunk"] == pytest.approx((chunk - 1) / 799, abs=0.005)
    assert none["same_chunk"] == pytest.approx((chunk - 1) / 31, rel=0.2)
    assert main(["stats", "--shuffle", "--batch-size", "32", str(class_sorted)]) == 0
    out = capsys.readouterr().out
    assert "order: 32 lanes, windows of 800 samples" in out
    assert "were they remote" in out


def test_same_chunk_pairs_are_counted_right(class_sorted: Path) -> None:
    dataset = tarpon.open(class_sorted)
    order = Order(shuffle=True, seed=3, samples=800, chunk=20, lanes=4, window=160)
    found = mixes(dataset, order, global_batch=40, batches=10**6, label=None)["this order"]
    pairs = 0
    epoch = order.samples_at(0, np.arange(800)).reshape(20, 40) // 20
    for batch in epoch:
        pairs += sum(a == b for i, a in enumerate(batch) for b in batch[:i])
    assert found.same_chunk == pytest.approx(pairs / (20 * 40 * 39 / 2))
    assert np.isnan(found.classes)


def test_a_plan_counts_requests_where_chunks_cross_shards(class_sorted: Path) -> None:
    dataset = tarpon.open(class_sorted)
    order = Order(shuffle=True, seed=3, samples=800, chunk=30, lanes=4, window=160)
    crossing = sum(end % 30 != 0 for end in range(EACH, 800, EACH)) + 4 * 800 // 160

    def planned(world_size: int) -> dict[str, Any]:
        return plan(
            dataset,
            order,
            batch_size=10,
            world_size=world_size,
            samples_per_s=1600.0,
            dollars_per_1000=0.5,
        )

    found = planned(2)
    assert found["requests"] == 27 + crossing
    assert found["requests_for_indexes"] == 16
    assert found["requests_per_s"] == 2 * (27 + crossing)
    assert found["dollars"] == pytest.approx((27 + crossing + 16) * 0.0005)
    mean = dataset.total_bytes / 800
    assert found["local_bytes"] == pytest.approx(40 * mean, abs=1)
    pages, slack = 80 * 2 * 4096, 64 << 20
    assert found["remote_bytes"] == pytest.approx((40 + 80) * mean + pages + slack, abs=1)
    assert planned(3)["requests"] == 3 * (27 + crossing)


def test_stats_without_labels_says_how_to_name_them(
    class_sorted: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "a.tar", [(f"{n}.bin", b"x") for n in range(50)])
    found = run(capsys, "stats", "--shuffle", "--batch-size", "8", str(tmp_path))["shuffle"]
    assert found["label"] is None
    assert found["mixes"]["this order"]["classes"] is None
    assert main(["stats", "--shuffle", "--batch-size", "8", "--label", "txt", str(tmp_path)]) == 2
    assert "no component 'txt', it has bin; name the one" in capsys.readouterr().err


def test_bench_measures(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--crop", "32"], ["--no-shuffle"], ["--window", "all"]):
        found = run(capsys, "bench", "--seconds", "0.2", "--batch-size", "8", *more, str(shards))
        assert found["samples_per_s"] > 10
        assert found["bytes_per_s"] > 1000 * found["samples_per_s"]
        assert (found["read_share"] == 1) == (more != ["--crop", "32"])
    assert main(["bench", "--seconds", "0.1", str(shards)]) == 0
    assert "samples/s" in capsys.readouterr().out


def test_view_draws_the_first_batch(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "sheet.png"
    found = run(
        capsys, "view", "--count", "7", "--crop", "16", "--output", str(target), str(shards)
    )
    with tarpon.Loader(
        shards, batch_size=7, fields={"image": tarpon.RandomResizedCrop(16)}
    ) as loader:
        batch = next(iter(loader))
    assert found["keys"] == batch.sample_keys
    sheet = np.asarray(Image.open(target))
    assert sheet.shape == (32, 64, 3)  # four across, two down
    for slot, image in enumerate(batch["image"]):
        row, column = divmod(slot, 4)
        assert np.array_equal(
            sheet[16 * row : 16 * row + 16, 16 * column : 16 * column + 16], image
        )
    assert (sheet[16:, 48:] == 255).all()


def test_wrong_arguments(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "--output", str(tmp_path / "no" / "x.png"), str(shards)]) == 2
    assert "expected a file such as batch.png that can be written" in capsys.readouterr().err
    for arguments in (["--window", "some"], ["--lanes", "0"], ["--batch-size", "x"]):
        with pytest.raises(SystemExit):
            main(["stats", "--shuffle", *arguments, str(shards)])
        assert "expected a whole number of at least 1" in capsys.readouterr().err
    write_tar(tmp_path / "empty.tar", [])
    assert main(["bench", str(tmp_path)]) == 2
    assert "no samples, expected some to read" in capsys.readouterr().err
    assert main(["stats", "--shuffle", str(tmp_path)]) == 0
    write_tar(tmp_path / "empty.tar", samples(range(1)))
    assert main(["stats", "--shuffle", str(tmp_path)]) == 0
