"""The store in a local folder: objects are files, written under a temporary name and renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeGuard

from components.store import Entry, Store, StoreError, is_temp, local_path, temp_name

STALE_TEMP_S = 3600.0
"""A temporary file older than this belongs to a writer that died; its successor removes it."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class LocalStore(Store):
    """See `Store`."""

    __slots__ = ("_root",)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = local_path(root)

    @property
    def root(self) -> str:
        return str(self._root)

    def path(self, rel: str) -> Path:
        """The local path of an object, for libraries that read files themselves."""
        return self._root / self._checked(rel)

    def exists(self, rel: str) -> bool:
        return self.path(rel).is_file()

    def stat(self, rel: str) -> Entry:
        try:
            found = self.path(rel).stat()
        except OSError as error:
            raise self._missing(rel, error) from error
        return Entry(size=found.st_size, modified_s=found.st_mtime)

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        folder = self.path(prefix) if prefix else self._root
        found: dict[str, Entry] = {}
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # gone, or a dangling link
                    if not is_temp(name):
                        info = path.stat()
                        entry = Entry(size=info.st_size, modified_s=info.st_mtime)
                        found[path.relative_to(self._root).as_posix()] = entry
        return dict(sorted(found.items()))

    def read_bytes(self, rel: str) -> bytes:
        try:
            return self.path(rel).read_bytes()
        except OSError as error:
            raise self._missing(rel, error) from error

    def open(self, rel: str) -> IO[bytes]:
        try:
            return self.path(rel).open("rb")
        except OSError as error:
            raise self._missing(rel, error) from error

    def open_temp(self, rel: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """See `Store.open_temp`.

        The file lies beside its target (`file.name` is its path), so the final rename never
        copies.  After a kill a hidden `.tmp` file is left, which the next writer of the same
        object clears away.
        """
        return self._filling(rel, Path.rename)

    def publish(self, rel: str, data: bytes, *, over: bytes | None = None) -> str:
        """See `Store.publish`.

        A new object is linked to its name, which fails where the name is taken; a replacement is
        compared and renamed under a lock of its folder, where the file system has locks.
        """
        target = self.path(rel)

        def put(temp: Path, target: Path) -> None:
            if over is None:
                _link_new(temp, target)
                return
            with _locked(target.parent):
                if _content(target) != over:
                    raise FileExistsError
                temp.rename(target)

        found = _content(target)
        if found == data:
            return self.url(rel)
        if found != over:
            raise self._conflict(rel, expected_none=over is None)
        try:
            with self._filling(rel, put) as file:
                file.write(data)
        except FileExistsError:
            if _content(target) != data:
                raise self._conflict(rel, expected_none=over is None) from None
        return self.url(rel)

    def remove(self, rel: str) -> None:
        try:
            self.path(rel).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(str(self.path(rel)), error) from error

    def check_writable(self) -> None:
        """See `Store.check_writable`; makes the root."""
        probe = self._root / temp_name("probe", secrets.token_hex(6))
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise self._unwritable(str(self._root), error) from error

    @contextlib.contextmanager
    def _filling(self, rel: str, put: Callable[[Path, Path], object]) -> Iterator[IO[bytes]]:
        """A temporary file; when the block ends well it is on disk and `put` names it."""
        target = self.path(rel)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target)
            temp = target.parent / temp_name(target.name, secrets.token_hex(6))
            file = temp.open("xb")
        except OSError as error:
            raise self._unwritable(str(target), error) from error
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            put(temp, target)
            _sync_folder(target.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
            if _is_about(error, temp):
                raise self._unwritable(str(target), error) from error
            raise

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


def _is_about(error: BaseException, temp: Path) -> TypeGuard[OSError]:
    """Whether writing the file failed, rather than something else inside the `with` block."""
    return (
        isinstance(error, OSError)
        and not isinstance(error, StoreError | FileExistsError)
        and error.errno is not None
        and str(error.filename or temp) in (str(temp), str(temp.parent))
    )


def _content(path: Path) -> bytes | None:
    """What is there now; None for nothing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror}, expected a file this user can read; correct its permissions"
        ) from error


def _link_new(temp: Path, target: Path) -> None:
    """Rename, but never over another file; raises FileExistsError."""
    try:
        os.link(temp, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links (FAT, some mounted buckets): as near as that file system lets one come.
        if target.exists():
            raise FileExistsError from error
        temp.rename(target)
    else:
        temp.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone with other replacing writers of a folder; on file systems without locks, not so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    """Clear away what killed writers of this very object left behind."""
    for temp in target.parent.glob(temp_name(target.name, "*")):
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
