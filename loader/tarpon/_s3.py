"""What only botocore knows: credentials, endpoints, signatures; and the names in a bucket.

Signing is arithmetic; listing, and getting credentials, touch the network. Bytes of shards do not
come through here: see core/http.h. Nothing of a credential is kept, shown or logged.
"""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from tarpon.errors import StoreError
from tarpon.store import Store

_LIVES_S = 3600
_RENEW_AT_MOST_EVERY_S = 1.0
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """One object of a listing."""

    url: str
    bytes: int
    etag: str


class S3:
    """One per process and `Store`; see `of`. Threads may share it."""

    _made: dict[tuple[int, Store], S3] = {}  # noqa: RUF012  the cache of `of`
    _making = threading.Lock()

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._clients: dict[tuple[str | None, str], Any] = {}
        self._regions: dict[str, str] = {}
        self._session: Any = None
        self._renewed_s = 0.0

    @classmethod
    def of(cls, store: Store | None) -> Self:
        """The one of this process; a child after fork() gets its own."""
        key = (os.getpid(), store or Store())
        with cls._making:
            if key not in cls._made:
                cls._made[key] = cls(key[1])
            found = cls._made[key]
        assert isinstance(found, cls)
        return found

    def list(self, url: str, *, page: int = _PAGE) -> list[Found]:
        """Every object whose URL begins with `url`, in the order of their keys.

        Raises:
            StoreError: It cannot be listed; the message says why and what to do.
        """
        bucket, prefix = split(url)
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        if self._store.requester_pays:
            request["RequestPayer"] = "requester"
        try:
            pages = self._client(bucket).get_paginator("list_objects_v2")
            return [
                Found(f"s3://{bucket}/{item['Key']}", item["Size"], item.get("ETag", ""))
                for part in pages.paginate(**request, PaginationConfig={"PageSize": page})
                for item in part.get("Contents", ())
            ]
        except Exception as error:
            raise _store_error(error, url) from None

    def sign(self, url: str) -> tuple[str, float]:
        """A URL that anybody may GET, and until when, in seconds since 1970.

        Raises:
            StoreError: There are no credentials, or they could not be renewed.
        """
        bucket, key = split(url)
        request = {"Bucket": bucket, "Key": key}
        if self._store.requester_pays:
            request["RequestPayer"] = "requester"
        try:
            now = time.time()
            signed = self._client(bucket).generate_presigned_url(
                "get_object", Params=request, ExpiresIn=_LIVES_S
            )
            expires = math.inf if self._store.unsigned else now + _LIVES_S
            return signed, min(expires, self._credentials_until())
        except Exception as error:
            raise _store_error(error, url) from None

    def renew(self) -> None:
        """Read or get the credentials anew: a server says that they are too old."""
        with self._lock:
            if time.monotonic() - self._renewed_s > _RENEW_AT_MOST_EVERY_S:
                self._renewed_s = time.monotonic()
                self._session = None
                self._clients.clear()

    def region_hint(self, url: str, region: str) -> None:
        """A server says that the bucket of `url` is in `region`."""
        with self._lock:
            self._regions[split(url)[0]] = region

    # ---- inside ----------------------------------------------------------------------------------

    def _credentials_until(self) -> float:
        """When temporary credentials end; botocore renews them minutes before, when it signs."""
        with self._lock:
            found = None if self._session is None else self._session.get_credentials()
        expiry = getattr(found, "_expiry_time", None)  # botocore has no public name for it
        return math.inf if expiry is None else float(expiry.timestamp())

    def _client(self, bucket: str) -> Any:
        with self._lock:
            region = self._regions.get(bucket, self._store.region)
            dots = "." in bucket  # which a wildcard certificate does not cover
            key = (region, "path" if dots else "")
            if key not in self._clients:
                self._clients[key] = self._new_client(region, dots=dots)
            return self._clients[key]

    def _new_client(self, region: str | None, *, dots: bool) -> Any:
        try:
            import botocore.session
            from botocore import UNSIGNED
            from botocore.config import Config
        except ImportError as error:
            raise StoreError(
                "s3://: boto3 is not installed, expected it to sign requests; "
                "pip install 'tarpon[s3]'"
            ) from error
        if self._session is None:
            self._session = botocore.session.Session(profile=self._store.profile)

        def made(style: str | None) -> Any:
            return self._session.create_client(
                "s3",
                region_name=region,
                endpoint_url=self._store.endpoint,
                verify=self._store.ca_bundle,
                config=Config(
                    signature_version=UNSIGNED if self._store.unsigned else "s3v4",
                    s3={"addressing_style": style} if style else None,
                    retries={"mode": "standard", "total_max_attempts": 5},
                    connect_timeout=10,
                    read_timeout=60,
                ),
            )

        if self._store.addressing != "auto":
            return made(self._store.addressing)
        client = made(None)
        styles = self._session.get_scoped_config().get("s3") or {}
        if "addressing_style" in styles:
            return client
        # Of a server of one's own, only the name of the host itself resolves. Of Amazon's, botocore
        # would sign for the host of all regions, which redirects.
        amazon = (urlsplit(client.meta.endpoint_url).hostname or "").endswith(_AMAZON)
        return made("virtual" if amazon and not dots else "path")


def split(url: str) -> tuple[str, str]:
    """Bucket and key, which may be empty, of ``s3://bucket/key``; a key is taken as it is."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StoreError(f"{url}: names no bucket, expected s3://bucket/key")
    return bucket, key


_RENEW = "log in again (aws sso login), or renew the session token"
_MEANING = {
    "NoSuchBucket": "no such bucket, expected one that exists; check its name and the endpoint",
    "404": "no such bucket, expected one that exists; check its name and the endpoint",
    "AccessDenied": "access denied, expected credentials that may list it (s3:ListBucket); check "
    "the policy and AWS_PROFILE, or name the tars one by one",
    "403": "access denied, expected credentials that may list it (s3:ListBucket); check the policy "
    "and AWS_PROFILE, or name the tars one by one",
    "ExpiredToken": f"the credentials have expired, expected good ones; {_RENEW}",
    "TokenRefreshRequired": f"the credentials have expired, expected good ones; {_RENEW}",
    "InvalidToken": f"the session token is not good, expected a good one; {_RENEW}",
    "InvalidAccessKeyId": "the server does not know the access key, expected one of its own; check "
    "AWS_ACCESS_KEY_ID, AWS_PROFILE and the endpoint",
    "SignatureDoesNotMatch": "the signature is wrong, expected the secret of the access key; check "
    "AWS_SECRET_ACCESS_KEY, and that no proxy rewrites requests",
    "RequestTimeTooSkewed": "this machine's clock is wrong, expected the time of day; set it",
    "PermanentRedirect": "the bucket is in another region, expected its own; set AWS_REGION",
    "AuthorizationHeaderMalformed": "signed for another region, expected the bucket's own; set "
    "AWS_REGION",
}


def _store_error(error: Exception, url: str) -> StoreError:
    """The same as ours: where, what was found and what to do; never a secret."""
    if isinstance(error, StoreError):
        text = str(error)
        return error if text.startswith(url) else StoreError(f"{url}: {text}")
    from botocore import exceptions as boto

    kind = type(error).__name__
    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        otherwise = f"refused ({code}), expected to be let in; check the server's log"
        return StoreError(f"{url}: {_MEANING.get(code, otherwise)}")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        what = (
            "no credentials, expected an access key and its secret; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the pod a role; for a public bucket "
            "use tarpon.Store(unsigned=True)"
        )
    elif isinstance(error, boto.ProfileNotFound):
        what = f"{error}, expected one of ~/.aws/config; set AWS_PROFILE or Store.profile"
    elif isinstance(error, boto.NoRegionError):
        what = "no region, expected one to sign for; set AWS_REGION"
    elif isinstance(error, boto.SSLError):
        what = "no trusted TLS connection, expected a certificate to trust; set AWS_CA_BUNDLE"
    elif isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        what = (
            f"nobody answers ({kind}), expected an S3 server; check AWS_ENDPOINT_URL_S3 and the "
            "network"
        )
    elif "SSO" in kind or "Token" in kind:
        what = f"the login has ended ({kind}), expected a good one; {_RENEW}"
    elif isinstance(error, boto.MetadataRetrievalError | boto.CredentialRetrievalError):
        what = f"no credentials came ({kind}), expected the role's; check the pod's role"
    else:
        what = f"{kind}, expected a signed URL; check the AWS configuration"
    return StoreError(f"{url}: {what}")
