"""What settings may be: one place for the checks that the steps and the pipeline's config share.

Every check raises ValueError as *where=found: expected what; what to do* and returns nothing.
Only the standard library is imported here, so that a command line can check before it loads more.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import entry_points
from urllib.parse import urlsplit

STRATEGIES = ("random", "stratified", "group")
"""How split may divide samples."""

MAX_PIXELS = 178_956_970
"""Pixels of the largest picture that training decodes: the loader's limit, fixed, and Pillow's."""

NEAR_DUPLICATE_BITS = 4
"""Differing bits of 64 up to which two images count as one, unless a config says otherwise.

Re-encoded, resized or slightly retouched copies differ by 0 to 4 bits.  Of 1,200 random crops (25
to 100 % of the area) of nine photographs, 4 bits tie 23 % to another one, 22 at most together; 12
bits tie 66 %, up to 80."""

MAX_NEAR_DUPLICATE_BITS = 12
"""Beyond this nearly every hash is compared with every other."""

MIN_SHARD_BYTES = 10_240
"""The smallest tar there is: one record."""

RESERVED_VERSIONS = ("catalog", "checkpoints")
"""Folders beside the versions of a dataset, which no version may be called."""

_TRACKING_KINDS = {"databricks", "databricks-uc", "file", "http", "https", "mssql", "mysql",
                   "postgresql", "sqlite", "uc"}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?", re.ASCII)


def check_name(value: str, *, where: str = "data.name") -> None:
    """Refuse a name that is not one plain folder name on every system."""
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{where}={value!r}: expected ASCII letters, digits, '.', '_' and '-', the first a "
            "letter or digit; choose a plainer name"
        )


def check_version(value: str, *, where: str = "data.version") -> None:
    """Refuse a version's name that is no plain name, or is a folder beside the versions."""
    check_name(value, where=where)
    if value in RESERVED_VERSIONS:
        raise ValueError(
            f"{where}={value!r}: expected another name than {' or '.join(RESERVED_VERSIONS)}, "
            "which lie beside the versions; choose one or leave it null"
        )


def check_strategy(value: str, *, where: str = "split.strategy") -> None:
    """Refuse a strategy that split does not know."""
    if value not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ValueError(f"{where}={value!r}: expected one of {known}{nearest(value, STRATEGIES)}")


def check_fractions(value: Sequence[float], *, where: str = "split.fractions") -> None:
    """Refuse shares that do not divide everything among train, val and test."""
    if (
        len(value) != 3
        or not all(math.isfinite(share) and share >= 0 for share in value)
        or value[0] <= 0
        or abs(sum(value) - 1) > 1e-6
    ):
        raise ValueError(
            f"{where}={list(value)!r}: expected three shares for train, val and test, none "
            "negative, train above 0, that sum to 1; for example [0.8,0.1,0.1]"
        )


def check_enough(
    samples: Mapping[str, int], classes: Collection[str], *, until: str | None, where: str
) -> None:
    """Refuse, before a training, a dataset that it or what follows it would refuse.

    Args:
        samples: Of each split.
        until: The last step of the pipeline; None: all of them.
    """
    if until not in ("train", "evaluate", "register", None):
        return
    if len(classes) < 2:
        raise ValueError(
            f"{where}: found the classes {sorted(classes)}, expected at least two to train on; was "
            "a class lost in quarantine? The catalog's column `error` says why"
        )
    if until != "train" and not samples.get("test"):
        raise ValueError(
            f"{where}: no test sample among {sum(samples.values())}, expected at least one for "
            "evaluate; raise the last of split.fractions or add data, or set until=train"
        )


def check_bits(value: int | None, *, where: str = "split.near_duplicate_bits") -> None:
    """Refuse a distance that cannot be searched; None (no search) is fine."""
    if value is not None and not 0 <= value <= MAX_NEAR_DUPLICATE_BITS:
        raise ValueError(
            f"{where}={value!r}: expected 0 to {MAX_NEAR_DUPLICATE_BITS} differing bits of 64, or "
            "null for no search; larger distances unite images that merely look alike"
        )


def check_max_bytes(value: int, *, where: str = "shard.max_bytes") -> None:
    """Refuse a size of tars that no tar can have."""
    if value < MIN_SHARD_BYTES:
        raise ValueError(
            f"{where}={value}: expected at least {MIN_SHARD_BYTES}, the smallest tar there is; "
            "64 MiB suits most datasets"
        )


def check_max_pixels(value: int, *, where: str = "ingest.max_pixels") -> None:
    """Refuse a limit of no use, and one that lets in what training cannot decode."""
    if not 1 <= value <= MAX_PIXELS:
        raise ValueError(
            f"{where}={value}: expected 1 to {MAX_PIXELS}, the most that training decodes; "
            "shrink larger pictures at the source"
        )


def check_group(value: str | None, *, where: str = "ingest.group") -> None:
    """Refuse what is no regular expression or captures nothing; None (no groups) is fine."""
    if value is None:
        return
    try:
        captures = re.compile(value).groups
    except re.error as error:
        raise ValueError(
            f"{where}={value!r}: not a regular expression ({error}), expected one whose first "
            r"(..) captures the group, for example '([^/]+)-\d+\.jpg$'"
        ) from error
    if captures < 1:
        raise ValueError(
            f"{where}={value!r}: found nothing in (..), expected a regular expression whose first "
            r"(..) captures the group, for example '([^/]+)-\d+\.jpg$'"
        )


def check_device(value: str, *, where: str = "train.device") -> None:
    """Refuse a device that has no such name; whether it is there is not asked."""
    if not _DEVICE.fullmatch(value):
        raise ValueError(f"{where}={value!r}: expected auto, cpu, cuda or cuda:<n>; use auto")


def check_tracking_uri(value: str, *, where: str = "mlflow.uri") -> None:
    """Refuse an address of a kind that neither MLflow nor a plugin of it knows."""
    kind = urlsplit(value).scheme.partition("+")[0]  # mysql+pymysql is MySQL
    plugins = {found.name for found in entry_points(group="mlflow.tracking_store")}
    known = sorted(_TRACKING_KINDS | plugins)
    if kind not in {"", *known}:
        raise ValueError(  # without the rest, which may hold a password
            f"{where}={kind}:..: expected a path, or an address of one of the kinds "
            f"{', '.join(known)}{nearest(kind, known)}"
        )


def nearest(word: str, known: Sequence[str]) -> str:
    """Words that point to the known name nearest to a mistyped one; empty when none is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; the nearest is {close[0]!r}" if close else ""
