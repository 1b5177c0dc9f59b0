"""The store: objects appear whole or not at all, and what it cannot do it says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from components.store import (
    STALE_TEMP_S,
    Store,
    StoreError,
    UnsupportedStoreError,
    split_url,
    without_secrets,
)


def test_an_object_reads_back_and_is_listed(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    url = store.write_bytes("a/b/x.bin", b"bytes")
    assert (tmp_path / "root/a/b/x.bin").read_bytes() == b"bytes"
    assert store.read_bytes("a/b/x.bin") == b"bytes"
    assert store.exists("a/b/x.bin")
    assert not store.exists("a/b")
    assert store.size("a/b/x.bin") == 5
    assert store.list() == ["a/b/x.bin"] == store.list("a")
    assert url == store.url("a/b/x.bin") == store.url("a", "b", "x.bin")


def test_a_full_url_splits_into_a_store_and_a_name(tmp_path: Path) -> None:
    url = Store(tmp_path).write_bytes("a/x.bin", b"1")
    for form in (url, f"file://{url}"):
        store, name = split_url(form)
        assert (name, store.read_bytes(name)) == ("x.bin", b"1")


def test_writing_twice_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("x", b"old")
    store.write_bytes("x", b"new")
    assert store.read_bytes("x") == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failed_write_leaves_the_old_object_and_no_temporary_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("x", b"old")

    def fail_half_way() -> None:
        with store.open_temp("x") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert store.read_bytes("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_writer_left_is_unseen_and_later_cleared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, young = tmp_path / ".x.aaaa.tmp", tmp_path / ".x.bbbb.tmp"
    for leftover in (old, young):
        leftover.write_bytes(b"half")
    long_ago = old.stat().st_mtime - STALE_TEMP_S - 1
    os.utime(old, (long_ago, long_ago))
    assert store.list() == []
    store.write_bytes("x", b"whole")
    assert store.list() == ["x"]
    assert not old.exists()
    assert young.exists()  # its writer may be alive


@pytest.mark.parametrize("root", ["s3://bucket/key?Signature=secret", "gs://user:secret@b/"])
def test_other_kinds_of_store_are_refused_without_telling_secrets(root: str) -> None:
    with pytest.raises(
        UnsupportedStoreError, match="not supported yet, expected a local"
    ) as caught:
        Store(root)
    assert "secret" not in str(caught.value)


def test_an_unwritable_root_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "root")
    with pytest.raises(StoreError, match=r"file/root: cannot be written .*set store\.root"):
        store.check_writable()
    with pytest.raises(StoreError, match="cannot be written"):
        store.write_bytes("x", b"")


def test_check_writable_makes_the_root_and_leaves_it_empty(tmp_path: Path) -> None:
    Store(tmp_path / "new" / "root").check_writable()
    assert list((tmp_path / "new" / "root").iterdir()) == []


def test_a_missing_object_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for read in (store.read_bytes, store.size, store.modified_s):
        with pytest.raises(StoreError, match="gone/x: no such object"):
            read("gone/x")
    assert store.list("gone") == []


@pytest.mark.parametrize("rel", ["../x", "/etc/x", "a/../../x"])
def test_names_that_leave_the_store_are_refused(tmp_path: Path, rel: str) -> None:
    with pytest.raises(StoreError, match="leaves the store"):
        Store(tmp_path).write_bytes(rel, b"")


def test_an_empty_root_is_refused() -> None:
    with pytest.raises(StoreError, match="expected a folder"):
        Store("")


def test_a_full_disk_is_the_stores_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"/x: cannot be written \(No space left .* make room"):
        Store(tmp_path).write_bytes("x", b"data")
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Store(tmp_path).open_temp("x"):
        (tmp_path / "source").read_bytes()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:p@ss@host:5000/a", "http://host:5000/a"),
        ("s3://bucket/key?Signature=x", "s3://bucket/key"),
        ("no answer from http://u:x@host/a?b=c at all", "no answer from http://host/a at all"),
        ("sqlite:////data/a@b.db", "sqlite:////data/a@b.db"),
    ],
)
def test_secrets_do_not_get_into_messages(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
