"""Where catalogs, shards and manifests lie: a local folder or an S3 bucket, behind one interface.

Every object appears whole or not at all.  Writing the same object twice is harmless; what two
runs might write differently at the same time goes through `publish`, which lets one of them win
and tells the other.  This module does not know what the objects mean and holds no credentials.
"""

from __future__ import annotations

import abc
import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_TEMP_SUFFIX = ".tmp"


class StoreError(OSError):
    """An object or the store root cannot be read or written; the message names it."""


class UnsupportedStoreError(StoreError):
    """The URL names a kind of store that this version cannot use."""


class ConflictError(StoreError):
    """Another run wrote other content under the same name; neither was overwritten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a listing says of one object.

    Attributes:
        size: Bytes.
        modified_s: When it was last written, in seconds since the epoch.
        etag: The ETag as the server sends it, quotes included; None in a folder.
    """

    size: int
    modified_s: float
    etag: str | None = None


class Store(abc.ABC):
    """One store root.  Object names are relative, with forward slashes: `flowers/v3/train.json`.

        Store("/data/tarpon")            # a LocalStore; file:///data/tarpon too
        Store("s3://bucket/some/prefix") # an S3Store; endpoint and credentials from the environment

    Safe for any number of processes at once: two writers of one object both succeed and the last
    wins, so a reader sees one of the two, never a mixture.

    Args:
        root: The folder or bucket.  A folder need not exist yet: the first write makes it.

    Raises:
        UnsupportedStoreError: The root names another kind of store, such as `gs://`.
        StoreError: The root names nothing.
    """

    __slots__ = ()

    def __new__(cls, root: str | os.PathLike[str]) -> Store:
        return object.__new__(_kind(root) if cls is Store else cls)

    @abc.abstractmethod
    def __init__(self, root: str | os.PathLike[str]) -> None: ...

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    @property
    @abc.abstractmethod
    def root(self) -> str:
        """The root's absolute path or its URL, without a slash at the end."""

    @property
    def name(self) -> str:
        """The last part of the root."""
        return self.root.rpartition("/")[2]

    def url(self, *parts: str) -> str:
        """The full URL of an object or folder below the root; it need not exist."""
        return "/".join([self.root.rstrip("/"), *(self._checked(part) for part in parts)])

    @abc.abstractmethod
    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Every finished object below a folder, by its name relative to the root, sorted.

        Raises:
            StoreError: The store cannot be listed.
        """

    def list(self, prefix: str = "") -> list[str]:
        """The names that `entries` has."""
        return [*self.entries(prefix)]

    @abc.abstractmethod
    def stat(self, rel: str) -> Entry:
        """What a listing would say of one object.

        Raises:
            StoreError: There is no such object.
        """

    @abc.abstractmethod
    def exists(self, rel: str) -> bool:
        """Whether a finished object of this name is there."""

    def size(self, rel: str) -> int:
        """Bytes in the object.

        Raises:
            StoreError: There is no such object.
        """
        return self.stat(rel).size

    @abc.abstractmethod
    def read_bytes(self, rel: str) -> bytes:
        """The whole object.

        Raises:
            StoreError: Missing or unreadable.
        """

    @abc.abstractmethod
    def open(self, rel: str) -> IO[bytes]:
        """The object as a stream, to be read from its start to its end and closed.

        Raises:
            StoreError: Missing or unreadable; reading may raise it too.
        """

    def write_bytes(self, rel: str, data: bytes) -> str:
        """Put one small object, whole or not at all; returns its URL.

        Raises:
            StoreError: The store cannot be written.
        """
        with self.open_temp(rel) as file:
            file.write(data)
        return self.url(rel)

    @abc.abstractmethod
    def open_temp(self, rel: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A local binary file to fill; the object appears when the `with` block ends without error.

        After an exception nothing is left.

        Raises:
            StoreError: The store cannot be written.
        """

    @abc.abstractmethod
    def publish(self, rel: str, data: bytes, *, over: bytes | None = None) -> str:
        """Put a small object that other runs may be putting too; returns its URL.

        Args:
            rel: The object.
            data: Its content.  If it is there already with just this content, all is well.
            over: What was read and may be replaced; None where there was nothing.

        Raises:
            ConflictError: Other content is there than `data` and `over`; it stays.
            StoreError: The store cannot be written.
        """

    @abc.abstractmethod
    def remove(self, rel: str) -> None:
        """Remove one object, if it is there.

        Raises:
            StoreError: It cannot be removed.
        """

    @abc.abstractmethod
    def check_writable(self) -> None:
        """Prove that an object can be put there, so that a step fails early.

        Raises:
            StoreError: It cannot; the message says why.
        """

    def _checked(self, rel: str) -> str:
        if rel.startswith("/") or ".." in rel.split("/"):
            raise StoreError(
                f"{self.root}: object name {rel!r} leaves the store, "
                "expected a relative name without '..'"
            )
        return rel

    def _conflict(self, rel: str, *, expected_none: bool) -> ConflictError:
        expected = "nothing there" if expected_none else "what this run had read there"
        return ConflictError(
            f"{self.url(rel)}: another run has written it with other content, expected {expected}; "
            "only one run can make a version: wait for the other and run again, or choose another "
            "data.version"
        )


def _kind(root: str | os.PathLike[str]) -> type[Store]:
    if is_s3(root):
        from components.store_s3 import S3Store  # boto3 takes a moment to import

        return S3Store
    from components.store_local import LocalStore

    return LocalStore


def is_s3(url: str | os.PathLike[str]) -> bool:
    """Whether a store root or an object's URL is on S3."""
    return os.fspath(url).lower().startswith("s3://")


def split_url(url: str) -> tuple[Store, str]:
    """Split an object's full URL into a store at its folder and the object's own name.

    Raises:
        UnsupportedStoreError: The URL names a kind of store that this version cannot use.
    """
    if is_s3(url):
        folder, _, name = url.rstrip("/").rpartition("/")
        return Store(folder), name
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
            f"{without_secrets(text)}: {scheme[1]}:// stores are not supported, "
            "expected a local folder or s3://bucket/prefix; set store.root to one"
        )
    return Path(os.path.abspath(os.path.expanduser(text.removeprefix("file://"))))


def without_secrets(text: str) -> str:
    """A URL, or words with URLs in them, fit for a message: no query (signatures), no password."""
    return re.sub(r"(://)(?:[^/\s]*@)?([^?\s]*)(?:\?\S*)?", r"\1\2", text)


def is_temp(name: str) -> bool:
    """Whether a name, without its folder, is that of an unfinished object."""
    return name.startswith(".") and name.endswith(_TEMP_SUFFIX)


def temp_name(name: str, unique: Any) -> str:
    """The name of an unfinished object; `is_temp` knows it."""
    return f".{name}.{unique}{_TEMP_SUFFIX}"
