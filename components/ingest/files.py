"""Finding the image files of a source and the class each belongs to.

Only names are looked at here, never contents; the order is the same on every machine.  A source
is a folder, a prefix of an S3 bucket, or a manifest file that lists images (see `rows`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from components import s3
from components.store import is_s3, without_secrets
from components.store_s3 import list_objects

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
SUPPORTED = "a folder or s3://bucket/prefix with one subfolder of images per class"
MANIFESTS = (".csv", ".jsonl", ".parquet")


class IngestError(ValueError):
    """The source as a whole cannot be ingested; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One file with an image's name.

    Attributes:
        path: Absolute, or a URL.
        name: The path below the source, with '/'; in a manifest the URI as it stands there.
        label: Name of the folder it lies in, or the manifest's; None directly in the source.
        etag: What a listing of S3 says; None where the file has to be asked.
    """

    path: str
    name: str
    label: str | None
    etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a source holds, sorted by path.

    Attributes:
        ignored: What is no image, relative to the source: other files, hidden files, and hidden
            folders, which end in '/' and are not entered.
        columns: A manifest's further columns, a row per image; None for a folder.
    """

    source: str
    images: list[ImageFile]
    ignored: list[str]
    columns: pa.Table | None = None

    def scattered_labels(self) -> dict[str, list[str]]:
        """Labels that several folders gave (`2024` in cat/2024 and dog/2024), with the folders."""
        folders: dict[str, set[str]] = {}
        for image in self.images:
            if image.label is not None and self.columns is None:
                parent = image.name.rpartition("/")[0]
                folders.setdefault(image.label, set()).add(parent)
        return {label: sorted(found) for label, found in folders.items() if len(found) > 1}


def scan(source: str) -> Listing:
    """List the image files below a folder, at any depth, through symbolic links too, or on S3.

    Raises:
        IngestError: The source is of another kind, missing, unreadable or holds no images, or
            all of its images lie outside any class folder.
        StoreError: The bucket cannot be listed.
    """
    if is_s3(source):
        root, files, hidden = _bucket(source)
    else:
        folder = _folder(source)
        paths, hidden = _walk(folder)
        files = [(path.relative_to(folder).as_posix(), str(path), None) for path in paths]
        root = str(folder)
    images: list[ImageFile] = []
    ignored: list[str] = []
    for name, path, etag in files:
        if os.path.splitext(name)[1].lower() in EXTENSIONS:
            label = name.rpartition("/")[0].rpartition("/")[2] or None
            images.append(ImageFile(path=path, name=name, label=label, etag=etag))
        else:
            ignored.append(name)
    ignored = sorted([*ignored, *hidden])
    if not images:
        raise IngestError(f"{root}: {_contents(ignored)}, expected {SUPPORTED}; check data.source")
    if all(image.label is None for image in images):
        raise IngestError(
            f"{root}: found {len(images)} images directly in it and none in class folders, "
            f"expected {SUPPORTED}; move them or set data.source to the folder above"
        )
    return Listing(source=root, images=images, ignored=ignored)


def is_manifest(source: str) -> bool:
    """Whether a source is one file that lists images."""
    return source.lower().endswith(MANIFESTS) and (is_s3(source) or not os.path.isdir(source))


def _bucket(source: str) -> tuple[str, list[tuple[str, str, str]], list[str]]:
    """The prefix as a URL; name, URL and ETag of every object that is not hidden; hidden names."""
    bucket, prefix = s3.split(source)
    prefix = prefix.strip("/")
    root = f"s3://{bucket}/{prefix}".rstrip("/")
    if not bucket or "?" in source:
        raise IngestError(
            f"{without_secrets(source)}: expected s3://bucket/prefix and no query; "
            "correct data.source"
        )
    found: list[tuple[str, str, str]] = []
    hidden: set[str] = set()
    start = f"{prefix}/" if prefix else ""
    for item in list_objects(bucket, start, root):
        name = item["Key"][len(start) :]
        parts = name.split("/")
        secret = next((number for number, part in enumerate(parts) if part[:1] == "."), None)
        if secret is not None:
            hidden.add("/".join(parts[: secret + 1]) + ("/" if secret + 1 < len(parts) else ""))
        elif parts[-1]:  # not the mark that some tools put for a folder
            found.append((name, f"s3://{bucket}/{item['Key']}", item["ETag"]))
    return root, sorted(found), sorted(hidden)


def _folder(source: str) -> Path:
    scheme = re.match(r"^([A-Za-z][A-Za-z0-9+.-]*)://", source)
    if scheme and scheme[1].lower() != "file":
        raise IngestError(
            f"{scheme[0]}...: {scheme[1]} sources are not supported, expected {SUPPORTED}; "
            "set data.source to one"
        )
    if not source:
        raise IngestError(f"data.source: found nothing, expected {SUPPORTED}; set data.source")
    root = Path(os.path.abspath(os.path.expanduser(source.removeprefix("file://"))))
    if root.suffix.lower() == ".tar" and not root.is_dir():
        raise IngestError(f"{root}: tars are not supported yet, expected {SUPPORTED}")
    if not root.exists():
        raise IngestError(f"{root}: no such folder, expected {SUPPORTED}; check data.source")
    if not root.is_dir():
        raise IngestError(
            f"{root}: found a file, expected {SUPPORTED}, or a manifest "
            f"({', '.join(MANIFESTS)}); check data.source"
        )
    return root


def _walk(root: Path) -> tuple[list[Path], list[str]]:
    """All files that are not hidden, sorted, and the names below the root of what is hidden.

    Every folder once, even where links make loops."""
    found: list[Path] = []
    hidden: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            info = folder.stat()
            entries = list(os.scandir(folder))
        except OSError as error:
            raise IngestError(
                f"{folder}: {error.strerror}, expected a folder this user can list; "
                "correct its permissions"
            ) from error
        if (info.st_dev, info.st_ino) in seen:
            continue
        seen.add((info.st_dev, info.st_ino))
        for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
            if entry.name.startswith("."):
                name = Path(entry.path).relative_to(root).as_posix()
                hidden.append(f"{name}/" if entry.is_dir() else name)
            elif entry.is_dir():
                waiting.append(Path(entry.path))
            else:
                found.append(Path(entry.path))
    return sorted(found), hidden


def _contents(ignored: list[str]) -> str:
    """Words for a folder without images."""
    if not ignored:
        return "found no files"
    kinds = Counter(_kind(name) for name in ignored)
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return f"found {len(ignored)} files and none of them an image ({named})"


def _kind(name: str) -> str:
    path = Path(name)
    return "hidden" if path.name.startswith(".") else path.suffix.lower() or "no extension"
