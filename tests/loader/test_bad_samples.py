"""Samples whose wanted fields cannot be made, and shards that are not what they say."""

from __future__ import annotations

import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tarpon

from tests.loader.tars import photo, samples, write_tar

FIELDS = {"image": tarpon.RandomResizedCrop(16), "label": tarpon.Int("cls")}


def spoiled(path: Path) -> Path:
    """30 samples; 3 has no label, 7 a truncated photo, 11 a word for a label, 19 no photo bytes."""
    members = dict(samples(range(30)))
    del members["00003.cls"]
    members["00007.jpg"] = photo(7)[:-200]
    members["00011.cls"] = b"eleven"
    members["00019.jpg"] = b""
    return write_tar(path / "train-000000.tar", members.items())


BAD = {
    3: "no component cls, expected one in every sample; it has jpg",
    7: "Premature end of JPEG file",
    11: "component cls holds 'eleven', expected an integer",
    19: "zero bytes, expected an image",
}


@pytest.mark.parametrize("index", BAD)
def test_raise_names_shard_key_offset_and_reason(tmp_path: Path, index: int) -> None:
    tar = spoiled(tmp_path)
    loader = tarpon.Loader(tmp_path, batch_size=1, fields=FIELDS, shuffle=False)
    with pytest.raises(tarpon.BadSampleError, match=BAD[index]) as caught:
        loader.batch(0, index)
    error = caught.value
    assert (error.shard, error.key) == (str(tar), f"{index:05d}")
    assert str(error).startswith(f"{tar}, sample {index:05d} at byte {error.offset}: ")
    assert 0 < error.offset < tar.stat().st_size
    assert BAD[index] in error.reason
    assert len(loader.batch(0, 0).indices) == 1  # the loader is still good
    loader.close()


@pytest.mark.parametrize("world_size", [1, 2])
def test_substitute_takes_the_next_good_sample_and_says_so(
    tmp_path: Path, world_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled(tmp_path)
    with tarpon.Loader(tmp_path, batch_size=6, fields={"key": tarpon.Raw("jpg")}, seed=5) as plain:
        order = np.concatenate([batch.indices for batch in plain])
    expected = []
    for position in range(30):  # six lanes that take turns; each goes round in itself
        while order[position % 30] in BAD:
            position += 6
        expected.append(order[position % 30])

    caplog.set_level(logging.WARNING, "tarpon")
    found = []
    for rank in range(world_size):
        with tarpon.Loader(
            tmp_path,
            batch_size=6 // world_size,
            fields=FIELDS,
            seed=5,
            on_bad_sample="substitute",
            rank=rank,
            world_size=world_size,
        ) as loader:
            batches = list(loader)
            assert all(batch.valid.all() for batch in batches)
            found.append([batch.indices for batch in batches])
            again = [batch.indices for batch in (loader.batch(0, step) for step in range(5))]
            assert np.array_equal(found[-1], again)
            stats = loader.stats()
            for batch in batches:
                assert [int(key) for key in batch.sample_keys] == batch.indices.tolist()
                assert np.array_equal(batch["label"], batch.indices % 10)
        if world_size == 1:
            assert {int(bad["key"]) for bad in stats["bad_samples"]} == set(BAD)
    assert np.stack(found, axis=-1).ravel().tolist() == expected
    if world_size == 1:
        assert len(caplog.records) == len(BAD)  # once each, though asked for twice


def test_substitute_needs_no_more_memory_than_two_batches(tmp_path: Path) -> None:
    spoiled(tmp_path)
    fields = {"image": tarpon.CenterCrop(64, ext="jpg")}
    with tarpon.Loader(
        tmp_path,
        batch_size=5,
        fields=fields,
        on_bad_sample="substitute",
        buffer_bytes=2 * 5 * 64 * 64 * 3 + 16384,
        timeout_s=20,
    ) as loader:
        assert sum(len(batch.indices) for batch in loader) == 30


def test_substitute_with_no_good_sample_left_raises(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(f"{i}.jpg", b"no image") for i in range(5)])
    with (
        tarpon.Loader(
            tmp_path,
            batch_size=2,
            fields={"image": tarpon.CenterCrop(8)},
            on_bad_sample="substitute",
        ) as loader,
        pytest.raises(tarpon.BadSampleError, match="all 5 samples are bad"),
    ):
        next(iter(loader))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"7", 7),
        (b" -12\n", -12),
        (b"+3", 3),
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"9223372036854775808", None),
        (b"", None),
        (b"-", None),
        (b"1 2", None),
        (b"1.0", None),
        (b"0x10", None),
        (b"1" * 70, None),
        (b"\xff\x00", None),
    ],
)
def test_what_counts_as_an_integer(tmp_path: Path, text: bytes, value: int | None) -> None:
    write_tar(tmp_path / "x.tar", [("a.cls", text)])
    loader = tarpon.Loader(tmp_path, batch_size=1, fields={"label": tarpon.Int("cls")})
    if value is None:
        with pytest.raises(tarpon.BadSampleError, match="expected an integer"):
            next(iter(loader))
    else:
        assert next(iter(loader))["label"].tolist() == [value]
    loader.close()


def test_a_shard_cut_off_is_named(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "train-000000.tar", samples(range(20)))
    tarpon.index(tar)
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(tarpon.CorruptShardError, match=r"train-000000.idx"):
        tarpon.open(tar)
    (tmp_path / "train-000000.idx").unlink()
    with pytest.raises(tarpon.CorruptShardError, match=r"train-000000.tar at byte \d+") as caught:
        tarpon.open(tar)
    assert caught.value.shard == str(tar)
    assert caught.value.offset > 0


def test_an_index_that_disagrees_with_its_tar_is_never_believed(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "train-000000.tar", samples(range(20)))
    write_tar(tmp_path / "other.tar", samples(range(20, 60)))
    tarpon.index(tmp_path / "other.tar")
    (tmp_path / "other.idx").rename(tmp_path / "train-000000.idx")
    with pytest.raises(tarpon.CorruptShardError, match="tarpon index --force"):
        list(tarpon.Loader(tar, batch_size=5, fields=FIELDS))
    tarpon.index(tar, force=True)
    assert len(list(tarpon.Loader(tar, batch_size=5, fields=FIELDS))) == 4


@pytest.mark.parametrize("lost", ["first", "middle", "last", "half", "appended", "other"])
def test_an_index_that_leaves_samples_out_is_noticed(lost: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(range(20)))
    tarpon.index(tar)
    index = tmp_path / "a.idx"
    lines = index.read_text().splitlines()[1:]
    if lost == "appended":
        write_tar(tar, samples(range(40)))
    elif lost == "other":
        other = write_tar(tmp_path / "b.tar", [(f"{i:05d}.jpg", photo(i)) for i in range(20)])
        tarpon.index(other)
        lines = (tmp_path / "b.idx").read_text().splitlines()[1:]
    else:
        cuts = {"first": slice(1), "middle": slice(9, 10), "last": slice(19, 20)}
        del lines[cuts.get(lost, slice(10, 20))]
    index.write_text("\n".join([f"v1.2 {len(lines)}", *lines]) + "\n")
    with pytest.raises(tarpon.CorruptShardError, match="tarpon index --force"):
        tarpon.open(tar)
    tarpon.index(tar, force=True)
    assert len(tarpon.open(tar)) == (40 if lost == "appended" else 20)


def test_what_lies_between_samples_is_no_fault(tmp_path: Path) -> None:
    members = [("README", b"x"), *samples(range(3)), ("notes", b"y"), *samples(range(3, 5))]
    tar = write_tar(tmp_path / "a.tar", members, format=tarfile.PAX_FORMAT)
    tarpon.index(tar)
    assert len(tarpon.open(tar)) == 5


def test_an_index_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(range(3)))
    (tmp_path / "a.idx").mkdir()  # in its place
    with pytest.raises(tarpon.StoreError, match=r"a\.idx"):
        tarpon.index(tar, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.idx", "a.tar"]


def test_a_list_that_disagrees_with_its_tar_is_named(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(range(5)))
    listing = tmp_path / "train.json"
    entry = '{"shardlist": [{"url": "a.tar", "nsamples": %d, "filesize": %d}]}'
    listing.write_text(entry % (5, 1234))
    with pytest.raises(tarpon.StoreError, match="expected 1234"):
        tarpon.open(listing)[0]
    listing.write_text(entry % (6, tar.stat().st_size))
    with pytest.raises(tarpon.CorruptShardError, match="5 samples, expected 6 by the shard list"):
        tarpon.open(listing)[0]


def test_a_shard_replaced_while_open_is_noticed_or_read_as_it_was(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(range(5)))
    dataset = tarpon.open(tar)
    before = dataset[1]
    write_tar(tmp_path / "new.tar", samples(range(50, 55))).replace(tar)
    assert dataset[1] == before  # the file that was opened


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar.gz", b"\x1f\x8b123", "gunzip"),
        ("a.tar", b"\x1f\x8b" + bytes(600), "gunzip"),
        ("b.tar", b"x" * 1024, "checksum"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(tarpon.CorruptShardError, match=message):
        tarpon.open(tmp_path / name)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(tarpon.StoreError, match=r"without \*.tar"):
        tarpon.open(tmp_path)
    with pytest.raises(tarpon.StoreError, match="no such file"):
        tarpon.open(tmp_path / "a.tar")
    empty = write_tar(tmp_path / "empty.tar", [])
    assert len(tarpon.open(empty)) == 0
    with pytest.raises(tarpon.TarponError, match="no samples in 1 tars"):
        tarpon.Loader(empty, batch_size=1)


def test_schemes_that_are_not_read_say_so_and_hide_secrets() -> None:
    with pytest.raises(tarpon.StoreError, match="gs:// is not supported, expected a local path"):
        tarpon.open("gs://bucket/train.json")
    with pytest.raises(tarpon.StoreError) as caught:
        tarpon.open("ftp://user:secret@host/a.tar?signature=abc")
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)
    with pytest.raises(tarpon.StoreError, match="pipe: commands are not supported"):
        tarpon.open("pipe:cat a.tar")
