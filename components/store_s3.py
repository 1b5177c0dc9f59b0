"""The store in an S3 bucket: objects are uploaded whole, manifests only where nobody was faster.

Uploads carry a CRC that the server checks; above `PART_BYTES` they go in parts, which a failed
upload removes.  After a kill the parts stay, unseen and paid for, until the bucket's lifecycle
rule `AbortIncompleteMultipartUpload` clears them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

from boto3.s3.transfer import TransferConfig, create_transfer_manager

from components import s3
from components.store import Entry, Store, StoreError, is_temp, temp_name, without_secrets

PART_BYTES = 16 << 20
"""Larger objects are uploaded in parts of this size: a part is sent again, not the whole."""

PARTS_AT_ONCE = 4
_ROUNDS = 3  # of reading and putting, before two publishers count as at odds

#: Said by servers that do not know a request's checksum, rather than find that it is wrong.
_NO_CHECKSUMS = (
    "NotImplemented",
    "InvalidArgument",
    "MissingContentLength",
)
_NO_TRAILERS = ("XAmzContentSHA256Mismatch", "https:")  # over TLS the CRC follows the body
_log = logging.getLogger(__name__)
_plain: set[str] = set()
"""Endpoints that refuse checksums, found out as this process went along."""
_told: set[tuple[str, str]] = set()


class S3Store(Store):
    """See `Store`.  Endpoint, region and credentials come from the environment, see `s3`."""

    __slots__ = ("_bucket", "_prefix")

    def __init__(self, root: str | os.PathLike[str]) -> None:
        text = os.fspath(root)
        self._bucket, prefix = s3.split(text)
        self._prefix = prefix.strip("/")
        if without_secrets(text) != text or not self._bucket:
            raise StoreError(
                f"{without_secrets(text)}: expected s3://bucket/prefix and nothing else (no user, "
                "no query); give credentials as environment"
            )
        self._checked(self._prefix)

    @property
    def root(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        folder = self._key(prefix) if prefix else self._prefix
        start = len(self._prefix) + 1 if self._prefix else 0
        found = {}
        for item in list_objects(self._bucket, f"{folder}/" if folder else "", self.root):
            if not is_temp(item["Key"].rpartition("/")[2]) and not item["Key"].endswith("/"):
                found[item["Key"][start:]] = Entry(
                    size=item["Size"],
                    modified_s=item["LastModified"].timestamp(),
                    etag=item["ETag"],
                )
        return dict(sorted(found.items()))

    def stat(self, rel: str) -> Entry:
        with self._errors(rel):
            answer = s3.client().head_object(Bucket=self._bucket, Key=self._key(rel))
        return Entry(
            size=answer["ContentLength"],
            modified_s=answer["LastModified"].timestamp(),
            etag=answer["ETag"],
        )

    def exists(self, rel: str) -> bool:
        with self._errors(rel):
            try:
                s3.client().head_object(Bucket=self._bucket, Key=self._key(rel))
            except s3.Failure as error:
                if s3.is_missing(error):
                    return False
                raise
        return True

    def read_bytes(self, rel: str) -> bytes:
        with self._errors(rel):
            return s3.read(self._bucket, self._key(rel))[0]

    def open(self, rel: str) -> IO[bytes]:
        with self._errors(rel):
            return s3.open_stream(self._bucket, self._key(rel))

    def write_bytes(self, rel: str, data: bytes) -> str:
        if len(data) > PART_BYTES:
            return super().write_bytes(rel, data)
        with self._errors(rel):
            self._put(rel, data)
        return self.url(rel)

    @contextlib.contextmanager
    def open_temp(self, rel: str) -> Iterator[IO[bytes]]:
        """See `Store.open_temp`.

        The file lies in the system's temporary folder (`TMPDIR`), which needs room for it.
        """
        self._key(rel)
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="tarpon-"))
            except OSError as error:
                raise _no_room(error) from error
            yield file  # type: ignore[misc]
            try:
                file.flush()
            except OSError as error:
                raise _no_room(error) from error
            with self._errors(rel):
                self._upload(rel, file.name)

    def publish(self, rel: str, data: bytes, *, over: bytes | None = None) -> str:
        """See `Store.publish`: a conditional put, If-None-Match or If-Match.

        A server without conditions is read before and after, which leaves a moment between.
        """
        with self._errors(rel):
            for _ in range(_ROUNDS):
                found = self._get(rel)
                if found is not None and found[0] == data:
                    return self.url(rel)
                if (found[0] if found else None) != over:
                    break
                if self._put_if(rel, data, found):
                    return self.url(rel)
        raise self._conflict(rel, expected_none=over is None)

    def remove(self, rel: str) -> None:
        with self._errors(rel):
            s3.client().delete_object(Bucket=self._bucket, Key=self._key(rel))

    def check_writable(self) -> None:
        """See `Store.check_writable`; where deleting is forbidden one empty object stays."""
        probe = temp_name("probe", "tarpon")
        with self._errors(probe, where=self.root):
            self._put(probe, b"")
            with contextlib.suppress(*s3.Failure):
                s3.client().delete_object(Bucket=self._bucket, Key=self._key(probe))

    def _key(self, rel: str) -> str:
        return f"{self._prefix}/{self._checked(rel)}".lstrip("/")

    @contextlib.contextmanager
    def _errors(self, rel: str, *, where: str | None = None) -> Iterator[None]:
        try:
            yield
        except s3.Failure as error:
            raise s3.store_error(error, where or self.url(rel)) from error

    def _get(self, rel: str) -> tuple[bytes, str] | None:
        try:
            return s3.read(self._bucket, self._key(rel))
        except s3.Failure as error:
            if s3.is_missing(error):
                return None
            raise

    def _put(self, rel: str, data: bytes, **condition: str) -> None:
        where = {"Bucket": self._bucket, "Key": self._key(rel)}
        _with_checksums(lambda client: client.put_object(**where, Body=data, **condition))

    def _put_if(self, rel: str, data: bytes, found: tuple[bytes, str] | None) -> bool:
        """Put `data` where there still is what was `found`; whether it was put."""
        try:
            self._put(rel, data, **({"IfMatch": found[1]} if found else {"IfNoneMatch": "*"}))
            return True
        except s3.Failure as error:
            code = s3.code(error)
            if code in ("ConditionalRequestConflict", "OperationAborted"):
                return False
            if code not in ("PreconditionFailed", "NotImplemented"):
                raise
            if code == "PreconditionFailed" and (found is None or self._get(rel) != found):
                return False
        # The server has no such condition, or (Ceph 16) calls a right ETag wrong.
        _tell_once(
            "conditions",
            "%s: the server has no conditional put of this kind; two runs that publish one version "
            "at the same moment might not notice each other",
        )
        self._put(rel, data)
        now = self._get(rel)
        return now is not None and now[0] == data

    def _upload(self, rel: str, path: str) -> None:
        """Upload a file, in parts when it is large; failing, leave neither object nor parts."""

        def send(client: Any) -> None:
            config = TransferConfig(
                multipart_threshold=PART_BYTES + 1,
                multipart_chunksize=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )
            with create_transfer_manager(client, config) as manager:
                manager.upload(path, self._bucket, self._key(rel)).result()

        _with_checksums(send)


def list_objects(bucket: str, prefix: str, where: str) -> Iterator[dict[str, Any]]:
    """Every object whose key begins with a prefix, as ListObjectsV2 tells it, a page at a time.

    Raises:
        StoreError: It cannot be listed; `where` names it.
    """
    try:
        pages = s3.client().get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            yield from page.get("Contents", ())
    except s3.Failure as error:
        raise s3.store_error(error, where) from error


def _with_checksums(send: Callable[[Any], object]) -> None:
    """Upload with a CRC; without one where the server turns out to know none."""
    endpoint = str(s3.client().meta.endpoint_url)
    if endpoint in _plain:
        send(s3.client(checksums=False))
        return
    try:
        send(s3.client())
    except s3.Failure as error:
        found = getattr(error, "response", {}).get("Error", {}).get("Code")
        if found not in _NO_CHECKSUMS and (found, endpoint[:6]) != _NO_TRAILERS:
            raise
        send(s3.client(checksums=False))
        _plain.add(endpoint)
        _tell_once(
            "checksums",
            "%s: the server takes no checksums with uploads; they go without (TLS and the "
            "signature still protect them)",
        )


def _tell_once(what: str, text: str) -> None:
    endpoint = without_secrets(str(s3.client().meta.endpoint_url))
    if (what, endpoint) not in _told:
        _told.add((what, endpoint))
        _log.warning(text, endpoint)


def _no_room(error: OSError) -> StoreError:
    return StoreError(
        f"{tempfile.gettempdir()}: cannot be written ({error.strerror or error}), expected room "
        "for one object before it is uploaded; set TMPDIR to another disk"
    )
