"""A Loader's images through DALI's CPU pipelines: pixels, order, epochs, state, and memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon
import torch
from tarpon import _dali

from tests.loader.tars import photo, write_tar
from tests.loader.test_pixels import KINDS, difference

pytest.importorskip("nvidia.dali")
from tarpon._dali_graph import graph
from tarpon.dali import ImagePipeline

FIELDS = {"jpg": tarpon.Raw("jpg;png"), "cls": tarpon.Int("cls")}
BATCH = 16  # of 103 samples: six batches, or seven with the rest
Tensors = dict[str, torch.Tensor]


def pipeline(
    shards: Path, *, loader: dict[str, Any] | None = None, **options: Any
) -> ImagePipeline:
    made = tarpon.Loader(
        shards, **({"batch_size": BATCH, "fields": FIELDS, "seed": 3} | (loader or {}))
    )
    return ImagePipeline(made, **({"device": "cpu", "size": 32, "num_threads": 2} | options))


def same(left: list[Tensors], right: list[Tensors]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(left, right, strict=True)
    )


# ---- what comes out ----------------------------------------------------------------------------


def test_tensors_are_the_loaders_samples(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=BATCH, fields=FIELDS, seed=3) as loader:
        expected = list(loader)
    with pipeline(shards) as fed:
        found = list(fed)
        assert len(found) == len(fed) == len(expected) == 6
    for batch, tensors in zip(expected, found, strict=True):
        assert tensors["image"].shape == (BATCH, 3, 32, 32)
        assert [tensors[name].dtype for name in ("image", "label", "valid", "indices")] == [
            torch.float32,
            torch.int64,
            torch.bool,
            torch.int64,
        ]
        assert np.array_equal(tensors["indices"], batch.indices)
        assert np.array_equal(tensors["label"], batch["cls"])
        assert tensors["valid"].all()


@pytest.mark.parametrize("kind", [*sorted(KINDS.keys() - {"tiny"}), "png"])
def test_our_windows_give_the_pixels_of_random_resized_crop(kind: str, tmp_path: Path) -> None:
    name = "png" if kind == "png" else "jpg"
    data = photo(2, size=(333, 251), format="PNG") if kind == "png" else KINDS[kind]()
    members = [
        (f"{i:02d}.{ext}", data if ext == name else b"1")
        for i in range(24)
        for ext in sorted((name, "cls"))
    ]
    tar = write_tar(tmp_path / "one.tar", members)
    crop = tarpon.RandomResizedCrop(48, exact=True)
    with tarpon.Loader(tar, batch_size=24, fields={"image": crop}, seed=3) as loader:
        expected = next(iter(loader))["image"]
    with pipeline(tar, loader={"batch_size": 24}, size=48, crops="tarpon") as fed:
        found = next(iter(fed))["image"].permute(0, 2, 3, 1).numpy()
    apart = [difference(a, b) for a, b in zip(expected, np.rint(found).astype(int), strict=True)]
    # Pillow looks beyond the window at its edges, DALI has no more than it: shows when enlarged.
    assert np.median(apart) < 1, apart
    assert max(apart) < 3, apart


@pytest.mark.parametrize("resize", [None, 48])
def test_evaluation_has_the_pixels_of_center_crop(resize: int | None, tmp_path: Path) -> None:
    kinds = sorted(KINDS.keys() - {"tiny"})
    members = [
        member
        for i, kind in enumerate(kinds)
        for member in [(f"{i:02d}.cls", b"1"), (f"{i:02d}.jpg", KINDS[kind]())]
    ]
    tar = write_tar(tmp_path / "one.tar", members)
    told = {"batch_size": len(kinds), "shuffle": False}
    crop = tarpon.CenterCrop(40, resize)
    with tarpon.Loader(tar, fields={"image": crop}, **told) as loader:
        expected = next(iter(loader))["image"]
    with pipeline(tar, loader=told, size=40, train=False, resize=resize) as fed:
        found = next(iter(fed))["image"].permute(0, 2, 3, 1).numpy()
    apart = {
        kind: difference(a, b)
        for kind, a, b in zip(kinds, expected, np.rint(found).astype(int), strict=True)
    }
    assert max(apart.values()) < 1, apart


def test_dtype_mean_std_and_layout(shards: Path) -> None:
    mean, std = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
    with pipeline(shards, crops="tarpon") as plain:
        raw = next(iter(plain))["image"]
    shape = (1, 3, 1, 1)
    expected = (raw - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    for dtype, off in [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2)]:
        for last in (False, True):
            told = {"dtype": dtype, "mean": np.array(mean), "std": std, "channels_last": last}
            with pipeline(shards, crops="tarpon", **told) as fed:
                image = next(iter(fed))["image"]
            assert image.dtype == getattr(torch, dtype)
            torch.testing.assert_close(image.float(), expected, atol=off, rtol=0)
            wanted = torch.channels_last if last else torch.contiguous_format
            assert image.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("crops", ["dali", "tarpon"])
def test_crops_and_flips_vary(shards: Path, crops: str, tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "one.tar",
        [m for i in range(64) for m in [(f"{i:02d}.cls", b"1"), (f"{i:02d}.jpg", photo(1))]],
    )
    with pipeline(tar, loader={"batch_size": 64}, crops=crops) as fed:
        first, second = (next(iter(fed))["image"] for _ in range(2))
    assert len(torch.unique(torch.cat([first, second]), dim=0)) == 128


def test_evaluation_covers_every_sample_once(shards: Path) -> None:
    for last, sizes in [("pad", [BATCH] * 7), ("keep", [BATCH] * 6 + [7])]:
        with pipeline(shards, loader={"last": last, "shuffle": False}, train=False) as fed:
            for _ in range(2):
                batches = list(fed)
                assert [len(batch["image"]) for batch in batches] == sizes
                seen = torch.cat([batch["indices"][batch["valid"]] for batch in batches])
                assert torch.equal(seen, torch.arange(103))


@pytest.mark.parametrize("train", [True, False])
def test_for_a_gpu_the_graph_is_wired_to_it(shards: Path, train: bool) -> None:
    """As far as that shows without one: DALI refuses pixels or draws on the wrong device here."""
    with pipeline(shards, train=train, crops="tarpon") as fed:
        plan = replace(fed._plan, gpu=True)
    wired = graph(plan, lambda _: (), batch_size=4, num_threads=1, device_id=0)
    assert [node.device for node in wired._graph_out] == ["gpu"]


# ---- order, epochs and state -----------------------------------------------------------------


def resumed(shards: Path, at: int, **options: Any) -> tuple[list[Tensors], list[Tensors]]:
    """Two epochs in one go, and the same by a pipeline that stops after `at` batches."""
    with pipeline(shards, **options) as fed:
        whole = [batch for _ in range(2) for batch in fed]
    parts: list[Tensors] = []
    with pipeline(shards, **options) as fed:
        epoch = iter(fed)
        parts += [next(epoch) for _ in range(at)]
        state = fed.state_dict()
    with pipeline(shards, **options) as fed:
        fed.load_state_dict(state)
        while len(parts) < len(whole):
            parts += list(fed)
    return whole, parts


@pytest.mark.parametrize("crops", ["dali", "tarpon"])
@pytest.mark.parametrize("at", [1, 6])
def test_a_resumed_pipeline_repeats_every_bit(shards: Path, crops: str, at: int) -> None:
    whole, parts = resumed(shards, at, crops=crops)
    assert same(whole, parts)
    assert not torch.equal(whole[0]["image"], whole[6]["image"])


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["trivial", "rand", "auto"])
def test_augmentations_are_resumed_too(shards: Path, augment: str) -> None:
    whole, parts = resumed(shards, 2, crops="tarpon", augment=augment)
    assert same(whole, parts)
    with pipeline(shards, crops="tarpon") as plain:
        bare = next(iter(plain))["image"]
    changed = (bare != whole[0]["image"]).flatten(1).any(1)
    assert BATCH / 2 < int(changed.sum()) <= BATCH


def test_our_windows_are_the_same_on_any_number_of_ranks(shards: Path) -> None:
    with pipeline(shards, loader={"batch_size": 8}, crops="tarpon") as fed:
        next(epoch := iter(fed))
        state = fed.state_dict()
        expected = next(epoch)
    found: dict[int, torch.Tensor] = {}
    for rank in range(2):
        told = {"batch_size": 4, "rank": rank, "world_size": 2}
        with pipeline(shards, loader=told, crops="tarpon") as fed:
            fed.load_state_dict(state)
            batch = next(iter(fed))
            found |= dict(zip(batch["indices"].tolist(), batch["image"], strict=True))
    assert found.keys() == set(expected["indices"].tolist())
    for index, image in zip(expected["indices"].tolist(), expected["image"], strict=True):
        assert torch.equal(found[index], image)


def test_state_is_a_loaders_and_counts_what_was_handed_over(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=BATCH, fields=FIELDS, seed=3) as loader:
        for _ in zip(range(2), loader, strict=False):
            pass
        state, rest = loader.state_dict(), [batch.indices.tolist() for batch in loader]
    with pipeline(shards, prefetch=3) as fed:
        epoch = iter(fed)
        assert [len(next(epoch)["label"]) for _ in range(2)] == [BATCH, BATCH]
        assert fed.state_dict() == state
        assert fed.stats()["samples"] == 2 * BATCH
        fed.set_epoch(5)
        assert len(list(fed)) == 6
        fed.load_state_dict(state)
        assert [batch["indices"].tolist() for batch in fed] == rest
        assert fed.epoch == 1
    with pytest.raises(tarpon.StateMismatchError, match="seed"):
        pipeline(shards, loader={"seed": 4}).load_state_dict(state)


def test_a_state_of_another_order_drops_what_flies_from_the_same_position(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=BATCH // 2, fields=FIELDS, seed=3) as loader:
        for _ in zip(range(2), loader, strict=False):
            pass
        state = loader.state_dict()
        expected = [index for batch in loader for index in batch.indices.tolist()]
    with pipeline(shards) as fed:
        next(iter(fed))
        assert fed.state_dict()["position"] == state["position"]
        fed.load_state_dict(state)
        assert next(iter(fed))["indices"].tolist() == expected[:BATCH]


def test_epochs_follow_without_draining(shards: Path) -> None:
    with pipeline(shards, prefetch=3) as fed:
        list(fed)
        assert [flight.epoch for flight in fed._flying] == [1, 1]
        in_flight = [flight.batch.indices.tolist() for flight in fed._flying]
        following = [batch["indices"].tolist() for batch in fed]
        assert following[:2] == in_flight


def test_a_break_goes_on_where_it_stopped(shards: Path) -> None:
    with pipeline(shards, crops="tarpon") as fed:
        whole = list(fed)
        fed.set_epoch(0)
        parts = []
        for batch in fed:
            parts.append(batch)
            if len(parts) == 2:
                break
        parts += list(fed)
    assert same(whole, parts)


# ---- memory ------------------------------------------------------------------------------------


def poison(flight: Any) -> None:
    flight.batch["jpg"].data[:] = 0xAA


def test_memory_goes_back_only_after_dali_has_read_it(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pipeline(shards, crops="tarpon", prefetch=3) as fed:
        whole = [batch for _ in range(2) for batch in fed]
    released = []

    def release(_: ImagePipeline, flight: Any) -> None:
        poison(flight)
        released.append(flight.start)

    monkeypatch.setattr(ImagePipeline, "_release", release)
    with pipeline(shards, crops="tarpon", prefetch=3) as fed:
        assert same(whole, [batch for _ in range(2) for batch in fed])
    assert released == [BATCH * step for step in range(6)] * 2


def test_memory_that_goes_back_early_would_show(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = ImagePipeline._feed

    def hasty(fed: ImagePipeline, info: Any) -> Any:
        inputs = feed(fed, info)
        poison(fed._flying[-1])
        return inputs

    monkeypatch.setattr(ImagePipeline, "_feed", hasty)
    with pipeline(shards, crops="tarpon") as fed, pytest.raises(tarpon.BadSampleError):
        next(iter(fed))


class LateEvent:
    """Of a GPU that is not through until somebody waits for it."""

    waited = False

    def query(self) -> bool:
        return self.waited

    def synchronize(self) -> None:
        self.waited = True


def test_a_gpu_that_lags_behind_holds_one_batch_of_a_ceiling(shards: Path) -> None:
    with pipeline(shards, loader={"buffer_bytes": 2**22}) as fed:
        epoch = iter(fed)
        next(epoch)
        events = [LateEvent(), LateEvent()]
        for event in events:
            fed._landed.append(replace(fed._flying[0], done=event))
        next(epoch)
        assert [event.waited for event in events] == [True, False]
    assert events[1].waited


def test_a_ceiling_that_is_too_low_is_refused_with_the_first_batch(shards: Path) -> None:
    told = {"buffer_bytes": 100_000, "timeout_s": 60}
    with pipeline(shards, loader=told, prefetch=4) as fed:
        with pytest.raises(ValueError, match=r"prefetch=4 and one more.*; raise it") as error:
            next(iter(fed))
        more = int(str(error.value).partition("raise it by ")[2].partition(",")[0])
    with pipeline(shards, loader={"buffer_bytes": 100_000 + more}, prefetch=4) as fed:
        assert len(list(fed)) == 6


def test_tensors_outlive_the_pipeline(shards: Path) -> None:
    with pipeline(shards, crops="tarpon") as fed:
        kept = list(fed)
        copies = [{name: tensor.clone() for name, tensor in batch.items()} for batch in kept]
        list(fed)
        assert fed.stats()["held_bytes"] > 0  # what flies
    assert same(kept, copies)
    fed.close()
    assert fed.stats() == fed.stats()  # the rate falls no more
    with pytest.raises(ValueError, match="closed"):
        next(iter(fed))


def test_two_threads_at_once_are_told_so(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pipeline(shards) as fed:
        inner = ImagePipeline._next
        monkeypatch.setattr(ImagePipeline, "_next", lambda fed: [next(iter(fed)), inner(fed)])
        with pytest.raises(RuntimeError, match="two threads take batches from one ImagePipeline"):
            next(iter(fed))
        monkeypatch.undo()
        assert len(list(fed)) == 6


def test_a_pipeline_that_is_dropped_stops_dali_first(shards: Path) -> None:
    fed = pipeline(shards, prefetch=4)
    next(iter(fed))
    dali = weakref.ref(fed._pipe)
    flying = fed._flying
    del fed
    gc.collect()
    assert dali() is None
    assert not flying  # emptied by the pipeline, once that was so


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "png"}, "image='png': the loader has no such field, expected a tarpon.Raw"),
        ({"image": "cls"}, "image='cls': the loader has a Int, expected a tarpon.Raw"),
        ({"label": "jpg"}, "label='jpg': the loader has a Raw, expected a tarpon.Int"),
        ({"device": "tpu"}, "device='tpu', expected one of 'gpu', 'cpu'"),
        ({"augment": "mix"}, "augment='mix', expected one of"),
        ({"crops": "mine"}, "crops='mine', expected one of"),
        ({"dtype": "uint8"}, "dtype='uint8', expected one of"),
        ({"size": 0}, "size=0, expected 1 to"),
        ({"std": (0, 1, 1)}, "expected three positive numbers"),
        ({"resize": 16, "train": False}, "resize=16, expected at least size=32"),
        ({"prefetch": 0}, "prefetch=0, expected a whole number of at least 1"),
        ({"num_threads": 0}, "num_threads=0, expected a whole number of at least 1"),
    ],
)
def test_options_are_checked(shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(shards, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_is_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match="device='gpu': torch finds no CUDA device"):
        pipeline(shards, device="gpu")


def test_without_dali_the_message_says_which_extra() -> None:
    code = "import sys; sys.modules['nvidia.dali'] = None; import tarpon; import tarpon.dali"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: tarpon.dali: " in done.stderr
    assert "pip install 'tarpon[dali-cuda12]' for CUDA 12, 'tarpon[dali-cuda13]'" in done.stderr


def test_tarpon_alone_imports_neither_dali_nor_torch() -> None:
    code = "import sys, tarpon; sys.exit(any(m in sys.modules for m in ('nvidia.dali', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- draws -------------------------------------------------------------------------------------


def test_a_policy_draws_every_row_and_keeps_its_chances() -> None:
    rows = [[(0, 1, 0.25), (1, 2, 1.0)], [(2, 3, 1.0), (1, 4, 0.0)]]
    policy = _dali.policy_of(rows, idle=9, independent=False)
    positions = np.arange(4000)
    ops, bins, signs = policy.draw(seed=1, epoch=2, positions=positions)
    first = bins[:, 0] == 1
    assert abs(first.mean() - 0.5) < 0.05
    assert abs((ops[first, 0] == 0).mean() - 0.25) < 0.05
    assert (ops[first, 1] == 1).all()
    assert (ops[~first] == [2, 9]).all()
    assert np.array_equal(bins[~first, 1], np.full((~first).sum(), 4))
    assert abs(signs.mean() - 0.5) < 0.05
    some = policy.draw(seed=1, epoch=2, positions=positions[70:75])
    assert all(np.array_equal(a, b[70:75]) for a, b in zip(some, (ops, bins, signs), strict=True))
    other = policy.draw(seed=1, epoch=3, positions=positions)
    assert not np.array_equal(other[2], signs)
