"""How the application speaks S3: the client, one object as a stream, errors that say what to do.

Endpoint, region, credentials and their renewal are botocore's own chain: environment, profile,
container or instance role.  Nothing of it is kept, shown or logged here.
"""

from __future__ import annotations

import functools
import io
import os
import time
from typing import IO, Any
from urllib.parse import urlsplit

import botocore.session
from botocore import exceptions as boto
from botocore.config import Config

from components.store import StoreError, without_secrets

ATTEMPTS = 5
"""Tries of one request, and of one place in a stream; botocore waits longer before each."""

_RETRY_PAUSE_S = 0.5
_PIECE_BYTES = 1 << 20
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")

_RENEW = "renew them (aws sso login, a new session token) and run again"
_REGION = "set AWS_REGION, or the endpoint, to the bucket's own"
#: By error code: what was found, what was expected, what to do.
_MEANING: dict[str, tuple[str, str, str]] = {
    "NoSuchBucket": ("no such bucket", "one that exists", "create it or correct the name"),
    "NoSuchKey": ("no such object", "it to be there", "check the store root and the version"),
    "InvalidBucketName": ("no valid bucket name", "s3://bucket/prefix", "correct the name"),
    "AccessDenied": (
        "access denied",
        "credentials whose policy allows it (s3:GetObject, s3:PutObject, s3:ListBucket, "
        "s3:DeleteObject, s3:AbortMultipartUpload)",
        "check the policy and the bucket's name; some servers say this of expired credentials too",
    ),
    "InvalidAccessKeyId": (
        "the server does not know the access key",
        "a key of this server",
        "check AWS_ACCESS_KEY_ID or AWS_PROFILE, and the endpoint",
    ),
    "SignatureDoesNotMatch": (
        "the signature is wrong",
        "the secret that belongs to the access key",
        "check AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and that no proxy rewrites requests",
    ),
    "ExpiredToken": ("the credentials have expired", "valid ones", _RENEW),
    "InvalidToken": ("the session token is not valid", "a valid one", _RENEW),
    "RequestTimeTooSkewed": (
        "this machine's clock is wrong",
        "the time of day to within 15 minutes",
        "set the clock",
    ),
    "PermanentRedirect": ("the bucket is in another region", "the bucket's own", _REGION),
    "AuthorizationHeaderMalformed": ("signed for another region", "the bucket's own", _REGION),
    "SlowDown": (
        "the server is busy and stayed so",
        "an answer",
        "run again, or with less at once",
    ),
    "BadDigest": (
        "the server received other bytes than were sent",
        "the same",
        "run again; if it happens again, look for a faulty proxy, network card or memory",
    ),
    "InvalidObjectState": (
        "the object is archived",
        "one that can be read at once",
        "restore it first",
    ),
    "QuotaExceeded": ("no room left", "room for it", "raise the quota or delete something"),
    "PreconditionFailed": (
        "it changed while it was read",
        "the same object throughout",
        "run again when nobody writes it",
    ),
    "NotImplemented": ("the server cannot do this", "an S3 server that can", "use another store"),
}
_SAME_AS = {
    "404": "NoSuchKey",
    "NotFound": "NoSuchKey",
    "403": "AccessDenied",
    "Forbidden": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "301": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "503": "SlowDown",
    "ServiceUnavailable": "SlowDown",
    "RequestLimitExceeded": "SlowDown",
    "Throttling": "SlowDown",
    "XAmzContentSHA256Mismatch": "BadDigest",
    "InvalidDigest": "BadDigest",
    "InsufficientStorage": "QuotaExceeded",
    "507": "QuotaExceeded",
    "412": "PreconditionFailed",
    "501": "NotImplemented",
    "304": "NotModified",
}

Failure = (boto.BotoCoreError, boto.ClientError)
"""What a call of the client raises."""


def client(*, checksums: bool = True) -> Any:
    """The process's S3 client for the environment as it is now; threads may share it.

    Args:
        checksums: Send a CRC with every upload, unless the environment says otherwise
            (`AWS_REQUEST_CHECKSUM_CALCULATION`).  False is for servers that refuse that.

    Raises:
        StoreError: The configuration names no such profile, or is not valid.
    """
    names = sorted(name for name in os.environ if name.startswith("AWS_"))
    state = tuple((name, os.environ[name]) for name in names)
    return _client(os.getpid(), state, checksums)


@functools.lru_cache(maxsize=4)
def _client(_pid: int, _environment: tuple[tuple[str, str], ...], checksums: bool) -> Any:
    """A fork shares no connection with its parent, and a changed environment is a new client."""
    options: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 32,
        "tcp_keepalive": True,
        "user_agent_extra": "tarpon",
    }
    if not checksums:
        options["request_checksum_calculation"] = "when_required"
    try:
        session = botocore.session.Session()
        made = session.create_client("s3", config=Config(**options))
        style = (session.get_scoped_config().get("s3") or {}).get("addressing_style")
        host = urlsplit(made.meta.endpoint_url).hostname or ""
        if style is None and not host.endswith(_AMAZON):
            # Of a server of one's own, only the name of the host itself resolves.
            path = Config(**options, s3={"addressing_style": "path"})
            made = session.create_client("s3", config=path)
    except (boto.BotoCoreError, ValueError) as error:
        raise store_error(error, "S3 client") from None
    return made


def is_url(url: str) -> bool:
    """Whether it is `s3://...`."""
    return url.lower().startswith("s3://")


def split(url: str) -> tuple[str, str]:
    """Bucket and key (which may be empty) of `s3://bucket/key`."""
    bucket, _, key = url[len("s3://") :].partition("/")
    return bucket, key


def code(error: Exception) -> str:
    """The server's error code, by the one name used here; empty when no server answered."""
    if not isinstance(error, boto.ClientError):
        return ""
    found = str(error.response.get("Error", {}).get("Code", ""))
    if not found:
        found = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    return _SAME_AS.get(found, found)


def is_missing(error: Exception) -> bool:
    """Whether there is no such object; a missing bucket is another matter."""
    return code(error) == "NoSuchKey"


def store_error(error: Exception, where: str) -> StoreError:
    """The error as the store's own: where, what was found, what to do; never a secret."""
    if isinstance(error, boto.ClientError):
        return _refused(error, where)
    found, expected, remedy = _failed(error)
    return StoreError(f"{where}: {found}, expected {expected}; {remedy}")


def _failed(error: Exception) -> tuple[str, str, str]:
    """What went wrong before or after a server's answer."""
    endpoint = without_secrets(str(getattr(error, "kwargs", {}).get("endpoint_url", "")))
    server = "/".join(endpoint.split("/")[:3]) or "S3"
    network = "check store.endpoint (AWS_ENDPOINT_URL_S3) and the network"
    kind = type(error).__name__.removesuffix("Error")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        found = "no credentials" if isinstance(error, boto.NoCredentialsError) else "half of them"
        return (
            f"found {found}",
            "an access key and its secret",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the pod a "
            "secret or a role",
        )
    if isinstance(error, boto.SSLError):
        return (
            f"no trusted TLS connection to {server}",
            "a certificate that this machine trusts",
            "set AWS_CA_BUNDLE to the server's authority, or begin store.endpoint with http:// if "
            "that is meant",
        )
    if isinstance(error, boto.FlexibleChecksumError):
        return "received other bytes than the checksum is of", "the same", "run again"
    if isinstance(error, boto.IncompleteReadError | boto.ConnectionError | boto.HTTPClientError):
        return f"no answer from {server}, or a broken one ({kind})", "an S3 server", network
    if "Credential" in kind or "Token" in kind:
        return "the credentials could not be had", "valid ones", _RENEW
    text = without_secrets(" ".join(str(error).split()))[:200]
    remedy = "correct the name, AWS_PROFILE and the files in ~/.aws, or store.endpoint"
    return text, "a name and a configuration that S3 takes", remedy


def _refused(error: boto.ClientError, where: str) -> StoreError:
    name = code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    said = f"{name or status} to {error.operation_name}"
    found, expected, remedy = _MEANING.get(
        name, (f"the server said {status}", "success", "run again, or ask who keeps the server")
    )
    return StoreError(f"{where}: {found} ({said}), expected {expected}; {remedy}")


def read(bucket: str, key: str) -> tuple[bytes, str]:
    """A whole object and its ETag.

    Raises:
        ClientError: There is none, or the server refuses; see `code`.
        StoreError: It broke off again and again.
    """
    with Stream(bucket, key) as stream:
        return stream.read(), stream.etag


def open_stream(bucket: str, key: str) -> IO[bytes]:
    """An object to be read once from its start to its end, buffered."""
    return io.BufferedReader(Stream(bucket, key), buffer_size=_PIECE_BYTES)


class Stream(io.RawIOBase):
    """One object's bytes in order, over one GET; after a broken connection it goes on where it was.

    Args:
        unless: An ETag: should the object still have it, the error's code is NotModified.

    Raises:
        ClientError: The object cannot be had.
        StoreError: While reading: it broke off `ATTEMPTS` times at one place, or changed.
    """

    def __init__(self, bucket: str, key: str, *, unless: str | None = None) -> None:
        self._bucket, self._key = bucket, key
        self._where = f"s3://{bucket}/{key}"
        self._at = 0
        condition = {"IfNoneMatch": unless} if unless else {}
        answer = client().get_object(Bucket=bucket, Key=key, **condition)
        self._body = answer["Body"]
        self.etag: str = answer.get("ETag", "")
        self.size: int = answer["ContentLength"]

    def readable(self) -> bool:
        return True

    def readall(self) -> bytes:
        """The rest, in larger pieces than Python would ask for."""
        pieces = []
        while piece := self.read(_PIECE_BYTES):
            pieces.append(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        if self._at >= self.size:
            return 0
        for attempt in range(ATTEMPTS):
            try:
                if attempt:
                    time.sleep(_RETRY_PAUSE_S * attempt)
                    self._reopen()
                data = self._read(len(buffer))
                break
            except StoreError:
                raise
            except (*Failure, OSError) as error:
                final = isinstance(error, boto.FlexibleChecksumError)
                final |= code(error) == "PreconditionFailed"
                if final or attempt == ATTEMPTS - 1:
                    raise store_error(error, f"{self._where} at byte {self._at}") from error
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        data: bytes = self._body.read(size)
        if not data:
            raise boto.IncompleteReadError(actual_bytes=self._at, expected_bytes=self.size)
        if self._at + len(data) == self.size:
            self._body.read(1)  # nothing more comes, and with that botocore checks the CRC
        return data

    def _reopen(self) -> None:
        self._body.close()
        answer = client().get_object(
            Bucket=self._bucket, Key=self._key, Range=f"bytes={self._at}-", IfMatch=self.etag
        )
        self._body = answer["Body"]
        wanted, given = f"bytes {self._at}-{self.size - 1}/{self.size}", answer.get("ContentRange")
        if given != wanted or answer.get("ETag") != self.etag:
            raise StoreError(
                f"{self._where}: the server sent {given or 'the whole object'} of "
                f"{answer.get('ETag')}, expected {wanted} of {self.etag}; do not read through "
                "what stands between (a proxy or gateway that ignores Range or If-Match)"
            )

    def close(self) -> None:
        if not self.closed and hasattr(self, "_body"):
            self._body.close()
        super().close()
