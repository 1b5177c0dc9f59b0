"""Finding the image files of a source and the class each belongs to.

Only names are looked at here, never contents; the order is the same on every machine.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
SUPPORTED = "a local folder with one subfolder of images per class"


class IngestError(ValueError):
    """The source as a whole cannot be ingested; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One file with an image's name.

    Attributes:
        path: Absolute.
        label: Name of the folder it lies in; None directly in the source.
    """

    path: str
    label: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a source holds, sorted by path.

    Attributes:
        ignored: What is no image, relative to the source: other files, hidden files, and hidden
            folders, which end in '/' and are not entered.
    """

    source: str
    images: list[ImageFile]
    ignored: list[str]

    def scattered_labels(self) -> dict[str, list[str]]:
        """Labels that several folders gave (`2024` in cat/2024 and dog/2024), with the folders."""
        folders: dict[str, set[str]] = {}
        for image in self.images:
            if image.label is not None:
                parent = Path(image.path).parent.relative_to(self.source).as_posix()
                folders.setdefault(image.label, set()).add(parent)
        return {label: sorted(found) for label, found in folders.items() if len(found) > 1}


def scan(source: str) -> Listing:
    """List the image files below a folder, at any depth, through symbolic links too.

    Raises:
        IngestError: The source is of another kind, missing, unreadable or holds no images, or
            all of its images lie outside any class folder.
    """
    root = _folder(source)
    images: list[ImageFile] = []
    ignored: list[str] = []
    paths, hidden = _walk(root)
    for path in paths:
        if path.suffix.lower() in EXTENSIONS:
            label = None if path.parent == root else path.parent.name
            images.append(ImageFile(path=str(path), label=label))
        else:
            ignored.append(path.relative_to(root).as_posix())
    ignored = sorted([*ignored, *hidden])
    if not images:
        raise IngestError(f"{root}: {_contents(ignored)}, expected {SUPPORTED}; check data.source")
    if all(image.label is None for image in images):
        raise IngestError(
            f"{root}: found {len(images)} images directly in it and none in class folders, "
            f"expected {SUPPORTED}; move them or set data.source to the folder above"
        )
    return Listing(source=str(root), images=images, ignored=ignored)


def _folder(source: str) -> Path:
    scheme = re.match(r"^([A-Za-z][A-Za-z0-9+.-]*)://", source)
    if scheme and scheme[1].lower() != "file":
        raise IngestError(
            f"{scheme[0]}...: {scheme[1]} sources are not supported yet, expected {SUPPORTED}; "
            "set data.source to one"
        )
    if not source:
        raise IngestError(f"data.source: found nothing, expected {SUPPORTED}; set data.source")
    root = Path(os.path.abspath(os.path.expanduser(source.removeprefix("file://"))))
    suffix = root.suffix.lower()
    for kind, suffixes in (("manifest files", {".csv", ".jsonl", ".parquet"}), ("tars", {".tar"})):
        if suffix in suffixes and not root.is_dir():
            raise IngestError(f"{root}: {kind} are not supported yet, expected {SUPPORTED}")
    if not root.exists():
        raise IngestError(f"{root}: no such folder, expected {SUPPORTED}; check data.source")
    if not root.is_dir():
        raise IngestError(f"{root}: found a file, expected {SUPPORTED}; check data.source")
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
