"""Where catalogs, shards and manifests lie: a folder today, addressed as if it were a bucket.

Every object appears whole or not at all: it is written under a temporary name in its own folder,
flushed to disk and renamed.  Writing the same object twice is harmless.  This module does not
know what the objects mean, never deletes a finished one and holds no credentials.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeGuard

STALE_TEMP_S = 3600.0
"""A temporary file older than this belongs to a writer that died; its successor removes it."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_TEMP_SUFFIX = ".tmp"


class StoreError(OSError):
    """An object or the store root cannot be read or written; the message names it."""


class UnsupportedStoreError(StoreError):
    """The URL names a kind of store that this version cannot use."""


class Store:
    """One store root.  Object names are relative, with forward slashes: `flowers/v3/train.json`.

    Safe for any number of processes at once: two writers of one object both succeed and the last
    rename wins, so a reader sees one of the two, never a mixture.

    Args:
        root: A folder, or the same as a `file://` URL.  It need not exist yet: the first write
            makes it.

    Raises:
        UnsupportedStoreError: The root names another kind of store, such as `s3://`.
    """

    __slots__ = ("_root",)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = local_path(root)

    def __repr__(self) -> str:
        return f"Store({str(self._root)!r})"

    @property
    def root(self) -> str:
        """The absolute path of the root."""
        return str(self._root)

    def url(self, *parts: str) -> str:
        """The full URL of an object or folder below the root; it need not exist."""
        return str(self._root.joinpath(*(self._checked(part) for part in parts)))

    def path(self, rel: str) -> Path:
        """The local path of an object, for libraries that read files themselves."""
        return self._root / self._checked(rel)

    def exists(self, rel: str) -> bool:
        """Whether a finished object of this name is there."""
        return self.path(rel).is_file()

    def size(self, rel: str) -> int:
        """Bytes in the object.

        Raises:
            StoreError: There is no such object.
        """
        try:
            return self.path(rel).stat().st_size
        except OSError as error:
            raise self._missing(rel, error) from error

    def read_bytes(self, rel: str) -> bytes:
        """The whole object.

        Raises:
            StoreError: Missing or unreadable.
        """
        try:
            return self.path(rel).read_bytes()
        except OSError as error:
            raise self._missing(rel, error) from error

    def write_bytes(self, rel: str, data: bytes) -> str:
        """Put one small object, whole or not at all; returns its URL.

        Raises:
            StoreError: The store cannot be written.
        """
        with self.open_temp(rel) as file:
            file.write(data)
        return self.url(rel)

    @contextlib.contextmanager
    def open_temp(self, rel: str) -> Iterator[IO[bytes]]:
        """A binary file to fill; it becomes the object when the `with` block ends without error.

        The file lies beside its target (`file.name` is its path), so the final rename never
        copies.  After an exception nothing is left; after a kill, a hidden `.tmp` file that the
        next writer of the same object clears away.

        Raises:
            StoreError: The store cannot be written.
        """
        target = self.path(rel)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target)
            temp = target.parent / f".{target.name}.{secrets.token_hex(6)}{_TEMP_SUFFIX}"
            file = temp.open("xb")
        except OSError as error:
            raise self._unwritable(str(target), error) from error
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temp.rename(target)
            _sync_folder(target.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
            if _is_about(error, temp):
                raise self._unwritable(str(target), error) from error
            raise

    def list(self, prefix: str = "") -> list[str]:
        """Names of all finished objects below a folder, relative to the root, sorted."""
        folder = self.path(prefix) if prefix else self._root
        found = []
        for parent, _, names in os.walk(folder):
            base = Path(parent).relative_to(self._root)
            found += [(base / name).as_posix() for name in names if not _is_temp(name)]
        return sorted(found)

    def modified_s(self, rel: str) -> float:
        """When the object was last written, in seconds since the epoch.

        Raises:
            StoreError: There is no such object.
        """
        try:
            return self.path(rel).stat().st_mtime
        except OSError as error:
            raise self._missing(rel, error) from error

    def check_writable(self) -> None:
        """Make the root and prove that an object can be put there, so that a step fails early.

        Raises:
            StoreError: It cannot; the message says why.
        """
        probe = self._root / f".probe.{secrets.token_hex(6)}{_TEMP_SUFFIX}"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise self._unwritable(str(self._root), error) from error

    def _checked(self, rel: str) -> str:
        if rel.startswith("/") or ".." in rel.split("/"):
            raise StoreError(
                f"{self.root}: object name {rel!r} leaves the store, "
                "expected a relative name without '..'"
            )
        return rel

    def _missing(self, rel: str, error: OSError) -> StoreError:
        found = "no such object" if isinstance(error, FileNotFoundError) else error.strerror
        return StoreError(f"{self.root}/{rel}: {found}; check the store root and the version")

    @staticmethod
    def _unwritable(where: str, error: OSError) -> StoreError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = (
            "make room or set store.root to another disk"
            if full
            else ("set store.root to one or correct its permissions")
        )
        expected = "room for it" if full else "a writable folder"
        return StoreError(
            f"{where}: cannot be written ({error.strerror or error}), expected {expected}; {remedy}"
        )


def split_url(url: str) -> tuple[Store, str]:
    """Split an object's full URL into a store at its folder and the object's own name.

    Raises:
        UnsupportedStoreError: The URL names a kind of store that this version cannot use.
    """
    path = local_path(url)
    return Store(path.parent), path.name


def local_path(url: str | os.PathLike[str]) -> Path:
    """The absolute local path behind a URL: a plain path, `~/...` or `file://...`.

    Raises:
        UnsupportedStoreError: Any other scheme.
        StoreError: An empty string.
    """
    text = os.fspath(url)
    if not text:
        raise StoreError("store root: found an empty string, expected a folder; set store.root")
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() != "file":
        raise UnsupportedStoreError(
            f"{without_secrets(text)}: {scheme[1]}:// stores are not supported yet, "
            "expected a local folder; set store.root to one"
        )
    return Path(os.path.abspath(os.path.expanduser(text.removeprefix("file://"))))


def without_secrets(text: str) -> str:
    """A URL, or words with URLs in them, fit for a message: no query (signatures), no password."""
    return re.sub(r"(://)(?:[^/\s]*@)?([^?\s]*)(?:\?\S*)?", r"\1\2", text)


def _is_about(error: BaseException, temp: Path) -> TypeGuard[OSError]:
    """Whether writing the file failed, rather than something else inside the `with` block."""
    return (
        isinstance(error, OSError)
        and not isinstance(error, StoreError)
        and error.errno is not None
        and str(error.filename or temp) in (str(temp), str(temp.parent))
    )


def _is_temp(name: str) -> bool:
    return name.startswith(".") and name.endswith(_TEMP_SUFFIX)


def _remove_stale(target: Path) -> None:
    """Clear away what killed writers of this very object left behind."""
    for temp in target.parent.glob(f".{target.name}.*{_TEMP_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - temp.stat().st_mtime > STALE_TEMP_S:
                temp.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
