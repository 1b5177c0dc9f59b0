"""Verify and publish: leaks planted in a catalog are found in the tars; nothing bad goes out."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components import manifest
from components.manifest import ManifestError
from components.shard import __main__ as command
from components.shard import run
from components.split import run as split
from tests.components import synthetic, versions


def placed(root: Path, **splits: int) -> list[dict[str, Any]]:
    """Photos whose rows name their split already: `placed(tmp, train=6, val=2, test=2)`."""
    rows = synthetic.photos(root / "source", sum(splits.values()))
    sides = [split for split, count in splits.items() for _ in range(count)]
    return [row | {"split": side} for row, side in zip(rows, sides, strict=True)]


def sealed(root: Path, rows: list[dict[str, Any]], **extra: pa.DataType) -> str:
    return versions.sealed(root, synthetic.write(root / "store", rows, **extra))


# --- the proof -----------------------------------------------------------------------------------


def test_the_proof_is_bound_to_what_was_read(tmp_path):
    url = versions.sealed(tmp_path, versions.split_catalog(tmp_path))
    report = run.verify(url)
    proof = json.loads((Path(url) / "leakage.json").read_text())
    assert report.ok is proof["ok"] is True
    assert report.checked == {"samples": 60, "phashes": 60, "groups": 0}
    assert proof["offenders"] == []
    sealed_tars = {
        shard.url: shard.sha256
        for split in manifest.SPLITS
        for shard in manifest.read_shard_list(url, split)
    }
    assert proof["shards"] == sealed_tars
    assert run.publish(url, config={}).digest == report.digest == proof["digest"]


def test_a_near_duplicate_on_two_sides_is_found_from_the_tars(tmp_path):
    rows = placed(tmp_path, train=6, val=2, test=2)
    rows[9]["phash"] = rows[0]["phash"] ^ 0b1011
    rows[7]["phash"] = rows[6]["phash"] ^ 0b1  # both in val: no leak
    url = sealed(tmp_path, rows)
    report = run.verify(url)
    assert not report.ok
    assert report.offenders == [
        {
            "check": "near_duplicate",
            "bits": 3,
            "sample_ids": report.offenders[0]["sample_ids"],
            "splits": report.offenders[0]["splits"],
        }
    ]
    ids = {rows[0]["sample_id"]: "train", rows[9]["sample_id"]: "test"}
    found = zip(report.offenders[0]["sample_ids"], report.offenders[0]["splits"], strict=True)
    assert dict(found) == ids
    assert run.verify(url, near_duplicate_bits=2).ok
    assert run.verify(url, near_duplicate_bits=None).ok


def test_equal_hashes_on_two_sides_are_found(tmp_path):
    rows = placed(tmp_path, train=4, val=2)
    rows[5]["phash"] = rows[0]["phash"]
    report = run.verify(sealed(tmp_path, rows), near_duplicate_bits=0)
    assert [offender["bits"] for offender in report.offenders] == [0]


def test_a_group_on_two_sides_is_found_where_groups_were_kept_together(tmp_path):
    rows = [
        row | {"group": "plain", "split_group": f"patient{number % 5}"}
        for number, row in enumerate(placed(tmp_path, train=5, val=1))
    ]
    report = run.verify(sealed(tmp_path, rows, split_group=pa.string()))
    assert report.offenders == [{"check": "group", "group": "patient0", "splits": ["train", "val"]}]
    assert report.checked["groups"] == 5


def test_a_group_split_passes_from_end_to_end(tmp_path):
    rows = synthetic.photos(tmp_path / "source", 40)
    rows = [row | {"camera": number % 8} for number, row in enumerate(rows)]
    url = synthetic.write(tmp_path / "store", rows, camera=pa.int64())
    report = split.split(
        url, root=str(tmp_path / "store"), name="photos", strategy="group", by="camera"
    )
    proof = run.verify(versions.sealed(tmp_path, report.catalog_url))
    assert proof.ok
    assert proof.checked["groups"] == 8


def test_a_sample_on_two_sides_is_found(tmp_path):
    """Not possible through plan, so the tar of one split is copied over another's."""
    url = Path(sealed(tmp_path, placed(tmp_path, train=3, val=3)))
    for ext in ("tar", "idx"):
        (url / f"val-000000.{ext}").write_bytes((url / f"train-000000.{ext}").read_bytes())
    train = manifest.read_shard_list(str(url), "train")[0]
    forged = manifest.ShardInfo(
        url="val-000000.tar",
        nsamples=train.nsamples,
        filesize=train.filesize,
        md5sum=train.md5sum,
        sha256=train.sha256,
    )
    (url / "val.json").write_bytes(manifest.shard_list([forged]))
    report = run.verify(str(url))
    assert sum(offender["check"] == "sample" for offender in report.offenders) == 3


# --- publish refuses -----------------------------------------------------------------------------


def test_publish_refuses_a_leak_and_leaves_no_version(tmp_path):
    rows = placed(tmp_path, train=4, val=2)
    rows[5]["phash"] = rows[0]["phash"] ^ 1
    url = sealed(tmp_path, rows)
    with pytest.raises(run.LeakageError, match="no proof, expected one; run verify"):
        run.publish(url, config={})
    run.verify(url)
    with pytest.raises(run.LeakageError, match=r"1 leaks between splits.*near_duplicate"):
        run.publish(url, config={})
    with pytest.raises(ManifestError, match="does not exist or was never finished"):
        manifest.read(url)


def test_publish_refuses_a_proof_of_something_else(tmp_path):
    url = Path(versions.sealed(tmp_path, versions.split_catalog(tmp_path)))
    run.verify(str(url))
    text = (url / "leakage.json").read_text()
    proof = json.loads(text)

    changes: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda p: p.update(digest="00" * 32), "about digest 000000000000"),
        (lambda p: p["shards"].popitem(), "about other tars than the sealed"),
        (lambda p: p.pop("ok"), "lacks"),
        (lambda p: p.update(ok="yes"), "leaks between splits"),
    ]
    for change, message in changes:
        damaged = json.loads(text)
        change(damaged)
        (url / "leakage.json").write_text(json.dumps(damaged))
        with pytest.raises(run.LeakageError, match=message):
            run.publish(str(url), config={})
    (url / "leakage.json").write_text(json.dumps(proof))
    with pytest.raises(run.LeakageError, match=r"up to 4 bits.*near_duplicate_bits=6"):
        run.publish(str(url), config={"split": {"near_duplicate_bits": 6}})
    assert not manifest.exists(str(url))
    run.publish(str(url), config={"split": {"near_duplicate_bits": 4}})


def test_verify_needs_a_sealed_version(tmp_path):
    made = versions.plan(tmp_path, versions.split_catalog(tmp_path))
    with pytest.raises(ManifestError, match=r"train\.json: no such shard list"):
        run.verify(made.dataset_url)


# --- damage --------------------------------------------------------------------------------------


@pytest.fixture
def version(tmp_path):
    return Path(versions.sealed(tmp_path, versions.split_catalog(tmp_path)))


def member(tar: Path, number: int) -> tarfile.TarInfo:
    with tarfile.open(tar) as opened:
        return opened.getmembers()[number]


@pytest.mark.parametrize("where", ["mid-member", "mid-header", "before the end"])
def test_a_tar_cut_off_is_named_with_its_byte(version, where):
    tar = version / "train-000001.tar"
    image = member(tar, 4)
    with tarfile.open(tar) as opened:
        last = opened.getmembers()[-1]
    keep, byte = {
        "mid-member": (image.offset_data + image.size // 2, image.offset),
        "mid-header": (image.offset + 100, image.offset),
        "before the end": (
            last.offset_data + -(-last.size // 512) * 512,
            last.offset_data + -(-last.size // 512) * 512,
        ),
    }[where]
    tar.write_bytes(tar.read_bytes()[:keep])
    with pytest.raises(run.CorruptShardError) as error:
        run.verify(str(version))
    assert f"train-000001.tar at byte {byte}: " in str(error.value)
    assert f"found {keep} bytes" in str(error.value)
    assert error.value.shard == str(tar)
    assert error.value.offset == byte
    assert not (version / "leakage.json").exists()


def test_flipped_bytes_are_found_where_they_are(version):
    tar = version / "train-000000.tar"
    image = member(tar, 4)
    data = bytearray(tar.read_bytes())
    data[image.offset_data + 20] ^= 0xFF
    tar.write_bytes(data)
    with pytest.raises(run.CorruptShardError, match="not the tar that was sealed") as error:
        run.verify(str(version))
    assert error.value.offset == image.offset_data
    data[image.offset] ^= 0xFF  # and its header: tarfile stops there without a word
    tar.write_bytes(data)
    with pytest.raises(run.CorruptShardError, match="not the tar that was sealed") as error:
        run.verify(str(version))
    assert error.value.offset == image.offset_data


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("cls 512 1", "cls 512 2", 1), "at byte 512 with 2 bytes"),
        (lambda text: text.replace("cls 512 1", "cls 1024 1", 1), r"says .*\.cls at byte 1024"),
        (lambda text: text.rsplit("\n", 2)[0] + "\n", "line 1: found"),
        (lambda text: text.replace("v1.2", "v1.1", 1), "line 1: found 'v1.1"),
        (lambda text: text.replace("cls 512", "cls x", 1), "line 2: found 'cls x"),
        (lambda text: "", "line 1: found ''"),
    ],
)
def test_an_index_at_odds_with_its_tar_is_named(version, damage, message):
    idx = version / "val-000000.idx"
    idx.write_text(damage(idx.read_text()))
    with pytest.raises(run.CorruptShardError, match=message) as error:
        run.verify(str(version))
    assert str(idx) in str(error.value)
    assert error.value.shard == str(version / "val-000000.tar")


def test_an_index_that_cuts_samples_elsewhere_is_named(version):
    idx = version / "val-000000.idx"
    head, first, second, *rest = idx.read_text().splitlines()
    words = first.split(" ")
    moved = [" ".join(words[:4]), " ".join(words[4:]) + " " + second]
    idx.write_text("\n".join([head, *moved, *rest]) + "\n")
    with pytest.raises(run.CorruptShardError, match=r"val-000000\.idx line 2: holds 1 members"):
        run.verify(str(version))


def test_labels_and_class_indices_must_agree(tmp_path, monkeypatch):
    from components.shard import pack

    honest = pack._entries

    def lying(key, members, *, start):
        members["cls"] = b"7"
        return honest(key, members, start=start)

    monkeypatch.setattr(pack, "_entries", lying)
    url = versions.sealed(tmp_path, versions.split_catalog(tmp_path))
    with pytest.raises(run.ShardError, match=r"class index 7 and label .* expected \d of 3"):
        run.verify(url)


# --- the proof of a published version ------------------------------------------------------------


def test_a_published_versions_proof_never_gets_weaker(tmp_path, capsys):
    report = versions.published(tmp_path)
    assert manifest.read(report.dataset_url).leakage == {"near_duplicate_bits": 4}
    proof = Path(report.dataset_url) / "leakage.json"
    before = proof.read_bytes()
    for bits in (0, 3, None):
        assert run.verify(report.dataset_url, near_duplicate_bits=bits).near_duplicate_bits == 4
    assert command.main(["--verify", report.dataset_url, "--near-duplicate-bits", "0"]) == 1
    assert "was published on a proof with 4, expected at least that" in capsys.readouterr().err
    assert command.main(["--verify", report.dataset_url]) == 0
    assert proof.read_bytes() == before


def test_by_default_a_version_is_checked_as_it_was_published(tmp_path):
    url = versions.sealed(tmp_path, versions.split_catalog(tmp_path))
    run.verify(url, near_duplicate_bits=None)
    run.publish(url, config={"split": {"near_duplicate_bits": None}})
    assert command.main(["--verify", url]) == 0
    assert json.loads((Path(url) / "leakage.json").read_text())["near_duplicate_bits"] is None


def test_a_stronger_proof_than_asked_for_is_enough(tmp_path):
    url = versions.sealed(tmp_path, versions.split_catalog(tmp_path))
    run.verify(url, near_duplicate_bits=4)
    run.publish(url, config={"split": {"near_duplicate_bits": 2}})
    assert manifest.read(url).leakage == {"near_duplicate_bits": 4}
