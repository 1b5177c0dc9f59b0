"""The store: one contract for folders and S3 servers, and what it cannot do it says.

What is in a store is looked at and changed behind its back, never by the store itself.
"""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.store import (
    ConflictError,
    Store,
    StoreError,
    UnsupportedStoreError,
    split_url,
    without_secrets,
)
from components.store_local import STALE_TEMP_S


@dataclass(frozen=True)
class Place:
    """A store root and how to look behind it."""

    root: str
    names: Callable[[], list[str]]


@pytest.fixture(params=["folder", "s3_server", "ceph_server"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    if request.param == "folder":
        root = tmp_path / "root" / "deep"

        def files() -> list[str]:
            found = (path.relative_to(root).as_posix() for path in root.rglob("*"))
            return sorted(name for name in found if (root / name).is_file())

        yield Place(str(root), files)
        return
    server = request.getfixturevalue(request.param)
    server.set_environment(monkeypatch)
    bucket = server.bucket()

    def keys() -> list[str]:
        listed = bucket.client.list_objects_v2(Bucket=bucket.name).get("Contents", [])
        return sorted(item["Key"].removeprefix("some/prefix/") for item in listed)

    yield Place(f"{bucket.url}/some/prefix", keys)


class TestContract:
    def test_an_object_reads_back_and_is_listed(self, place: Place) -> None:
        store = Store(place.root)
        assert store.list() == []
        url = store.write_bytes("a/b/x.bin", b"bytes")
        store.write_bytes("ab", b"")
        assert place.names() == ["a/b/x.bin", "ab"] == store.list()
        assert store.list("a") == ["a/b/x.bin"]
        assert store.read_bytes("a/b/x.bin") == b"bytes"
        assert store.read_bytes("ab") == b""
        assert store.exists("a/b/x.bin")
        assert not store.exists("a/b")
        entry = store.entries()["a/b/x.bin"]
        assert (entry.size, store.size("a/b/x.bin")) == (5, 5)
        assert entry.etag == store.stat("a/b/x.bin").etag
        assert url == store.url("a/b/x.bin") == store.url("a", "b", "x.bin")
        assert (store.root, store.name) == (place.root, place.root.rpartition("/")[2])
        assert pickle.loads(pickle.dumps(store)).read_bytes("a/b/x.bin") == b"bytes"

    def test_a_full_url_splits_into_a_store_and_a_name(self, place: Place) -> None:
        store, name = split_url(Store(place.root).write_bytes("a/x.bin", b"1"))
        assert (name, store.read_bytes(name)) == ("x.bin", b"1")
        assert store.root == f"{place.root}/a"

    def test_names_are_any_text(self, place: Place) -> None:
        store = Store(place.root)
        names = ["a b+c%20?x=1&y#z.jpg", "Füße/日本.jpg", "{}.json", "sp ace/~.txt"]
        for name in names:
            store.write_bytes(name, name.encode())
        assert store.list() == sorted(names)
        assert [store.read_bytes(name).decode() for name in names] == names

    def test_writing_twice_replaces_and_leaves_nothing_else(self, place: Place) -> None:
        store = Store(place.root)
        store.write_bytes("x", b"old")
        store.write_bytes("x", b"new")
        assert store.read_bytes("x") == b"new"
        assert place.names() == ["x"]

    def test_a_failed_write_leaves_the_old_object_and_nothing_else(self, place: Place) -> None:
        store = Store(place.root)
        store.write_bytes("x", b"old")

        def fail_half_way() -> None:
            with store.open_temp("x") as file:
                file.write(b"half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail_half_way()
        assert store.read_bytes("x") == b"old"
        assert place.names() == ["x"]

    def test_a_stream_is_the_object(self, place: Place) -> None:
        store = Store(place.root)
        data = os.urandom(3 << 20)
        with store.open_temp("x") as file:
            file.write(data)
        with store.open("x") as stream:
            assert stream.read(1000) == data[:1000]
            assert stream.read() == data[1000:]
            assert stream.read(1) == b""

    def test_a_missing_object_is_named(self, place: Place) -> None:
        store = Store(place.root)
        for read in (store.read_bytes, store.size, store.open):
            with pytest.raises(StoreError, match="gone/x: no such object") as caught:
                read("gone/x")
            assert store.url("gone/x") in str(caught.value)
        assert store.list("gone") == []

    @pytest.mark.parametrize("rel", ["../x", "/etc/x", "a/../../x"])
    def test_names_that_leave_the_store_are_refused(self, place: Place, rel: str) -> None:
        with pytest.raises(StoreError, match="leaves the store"):
            Store(place.root).write_bytes(rel, b"")
        assert place.names() == []

    def test_check_writable_leaves_nothing(self, place: Place) -> None:
        Store(place.root).check_writable()
        assert place.names() == []

    def test_removing_is_of_one_object_and_may_be_repeated(self, place: Place) -> None:
        store = Store(place.root)
        store.write_bytes("x", b"1")
        store.write_bytes("xy", b"2")
        store.remove("x")
        store.remove("x")
        assert place.names() == ["xy"]

    def test_what_is_published_stays_unless_it_was_read(self, place: Place) -> None:
        store = Store(place.root)
        assert store.publish("d/v1/dataset.json", b"one") == store.url("d/v1/dataset.json")
        store.publish("d/v1/dataset.json", b"one")
        for over in (None, b"never was"):
            with pytest.raises(ConflictError, match=r"d/v1/dataset\.json: another run .*version"):
                store.publish("d/v1/dataset.json", b"two", over=over)
        assert store.read_bytes("d/v1/dataset.json") == b"one"
        store.publish("d/v1/dataset.json", b"two", over=b"one")
        assert store.read_bytes("d/v1/dataset.json") == b"two"
        assert place.names() == ["d/v1/dataset.json"]
        with pytest.raises(ConflictError):
            store.publish("gone", b"", over=b"was there")

    # Swift looks before it writes: of two puts within a few milliseconds both succeed.
    @pytest.mark.parametrize("place", ["folder", "ceph_server"], indirect=True)
    def test_of_publishers_racing_one_wins_and_the_others_know(self, place: Place) -> None:
        """Eight at once, five times: six with contents of their own, two with the same."""
        store = Store(place.root)
        store.check_writable()
        for turn in range(5):
            start = threading.Barrier(8)
            told: dict[int, bool] = {}
            contents = [str(number).encode() for number in range(6)] + [b"same", b"same"]

            def publish(number: int) -> None:
                start.wait()  # noqa: B023 - joined within the turn
                try:
                    store.publish(f"{turn}.json", contents[number])  # noqa: B023
                    told[number] = True  # noqa: B023
                except ConflictError:
                    told[number] = False  # noqa: B023

            threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            kept = store.read_bytes(f"{turn}.json")
            assert told == {number: contents[number] == kept for number in range(8)}
            assert len(place.names()) == turn + 1


# --- folders only --------------------------------------------------------------------------------


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    store, name = split_url(f"file://{Store(tmp_path).write_bytes('a/x.bin', b'1')}")
    assert (name, store.read_bytes(name)) == ("x.bin", b"1")


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


def test_publishing_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    store = Store(tmp_path)
    store.publish("x", b"one")
    with pytest.raises(ConflictError):
        store.publish("x", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert store.read_bytes("x") == b"one"


def test_an_unwritable_root_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "root")
    with pytest.raises(StoreError, match=r"file/root: cannot be written .*set store\.root"):
        store.check_writable()
    with pytest.raises(StoreError, match="cannot be written"):
        store.write_bytes("x", b"")


def test_a_full_disk_is_the_stores_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (Store(tmp_path).write_bytes, Store(tmp_path).publish):
        with pytest.raises(StoreError, match=r"/x: cannot be written \(No space left .* make room"):
            write("x", b"data")
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Store(tmp_path).open_temp("x"):
        (tmp_path / "source").read_bytes()
    assert list(tmp_path.iterdir()) == []


# --- roots and URLs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "kind", "message"),
    [
        ("", StoreError, "expected a folder"),
        ("gs://user:secret@b/", UnsupportedStoreError, "not supported, expected a local folder or"),
        ("s3://bucket/key?Signature=secret", StoreError, "expected s3://bucket/prefix and nothing"),
        ("s3://user:secret@bucket/key", StoreError, "expected s3://bucket/prefix and nothing"),
        ("s3:///key", StoreError, "expected s3://bucket/prefix"),
        ("s3://bucket/a/../b", StoreError, "leaves the store"),
    ],
)
def test_other_roots_are_refused_without_telling_secrets(
    root: str, kind: type[StoreError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        Store(root)
    assert "secret" not in str(caught.value)


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
