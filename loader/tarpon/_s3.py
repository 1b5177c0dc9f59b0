"""What only botocore knows: credentials, endpoints; and the names in a bucket.

Signing (`_presign.py`) is arithmetic; listing, and getting credentials, touch the network. Bytes of
shards do not come through here: see core/http.h. Nothing of a credential is shown or logged.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tarpon._presign import Keys, Place, Presigner, escaped
from tarpon.errors import StoreError
from tarpon.store import Store

_LIVES_S = 3600
_SIGNER_S = 30.0
"""How long one signer serves: botocore is asked no oftener for credentials."""
_MARGIN_S = 60.0
"""How long before its end a URL counts as expired: clocks differ, requests wait in line."""
_RENEW_AT_MOST_EVERY_S = 1.0
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_PAGE = 1000
_TOLD_BY = (
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """One object of a listing."""

    url: str
    bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Signer:
    url: Callable[[str], str]
    from_s: float
    until_s: float
    expires_s: float


class S3:
    """One per process and `Store`; see `of`. Threads may share it."""

    _made: dict[tuple[int, Store], S3] = {}  # noqa: RUF012  the cache of `of`
    _making = threading.Lock()

    def __init__(self, store: Store) -> None:
        self._store = store
        self._environment = _environment()
        self._lock = threading.RLock()
        self._clients: dict[tuple[str | None, str], Any] = {}
        self._regions: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        self._signers: dict[str, _Signer] = {}
        self._session: Any = None
        self._renewed_s = 0.0

    @classmethod
    def of(cls, store: Store | None) -> Self:
        """The one of this process, as long as the environment says the same.

        A child after fork() gets its own.
        """
        key = (os.getpid(), store or Store())
        with cls._making:
            found = cls._made.get(key)
            if found is None or found._environment != _environment():
                found = cls._made[key] = cls(key[1])
        assert isinstance(found, cls)
        return found

    def list(self, url: str, *, deep: bool = True, page: int = _PAGE) -> list[Found]:
        """Every object whose URL begins with `url`, in the order of their keys' bytes.

        Markers of folders, whose keys end in a slash, are left out.

        Args:
            deep: Also those with another slash after `url`.
            page: Objects per request, at most 1,000.

        Raises:
            StoreError: It cannot be listed; the message says why and what to do.
        """
        bucket, prefix = split(url)
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        if self._store.requester_pays:
            request["RequestPayer"] = "requester"
        if not deep:
            request["Delimiter"] = "/"
        try:
            pages = self._client(bucket).get_paginator("list_objects_v2")
            return [
                Found(f"s3://{bucket}/{item['Key']}", item["Size"], item.get("ETag", ""))
                for part in pages.paginate(**request, PaginationConfig={"PageSize": page})
                for item in part.get("Contents", ())
                if not item["Key"].endswith("/")
            ]
        except Exception as error:
            raise _store_error(error, url) from None

    def sign(self, url: str) -> tuple[str, float]:
        """A URL that anybody may GET, and when to ask for another, in seconds since 1970.

        That is a while before the URL or temporary credentials end.

        Raises:
            StoreError: There are no credentials, or they could not be renewed before they ended.
        """
        bucket, key = split(url)
        signer = self._signers.get(bucket)
        if signer is None or not signer.from_s <= (now := time.time()) < signer.until_s:
            try:
                with self._lock:
                    signer = self._signers[bucket] = self._new_signer(bucket)
            except Exception as error:
                if signer is None or now >= signer.expires_s:
                    raise _store_error(error, url) from None
                # botocore wants them renewed minutes before they end: until then they are good.
                until = min(now + _SIGNER_S, signer.expires_s)
                signer = self._signers[bucket] = replace(signer, until_s=until)
        return signer.url(key), signer.expires_s

    def renew(self) -> None:
        """Read or get the credentials anew: a server says that they are too old."""
        with self._lock:
            if time.monotonic() - self._renewed_s > _RENEW_AT_MOST_EVERY_S:
                self._renewed_s = time.monotonic()
                self._session = None
                self._clients.clear()
                self._signers.clear()

    def region_hint(self, url: str, region: str) -> None:
        """A server says that the bucket of `url` is in `region`."""
        with self._lock:
            bucket = split(url)[0]
            if self._regions.get(bucket) != region:
                self._regions[bucket] = region
                self._places.pop(bucket, None)
                self._signers.pop(bucket, None)

    # ---- inside ----------------------------------------------------------------------------------

    def _new_signer(self, bucket: str) -> _Signer:
        place = self._place(bucket)
        if self._store.unsigned:
            return _Signer(lambda key: place.base + escaped(key), 0.0, math.inf, math.inf)
        keys, now = self._keys(), time.time()
        signer = Presigner(
            place,
            keys,
            now_s=now,
            lifetime_s=_LIVES_S,
            requester_pays=self._store.requester_pays,
        )
        # of credentials that live for seconds, most of those seconds are to be used
        margin = min(_MARGIN_S, max(keys.expires_s - now, 0.0) / 10)
        expires = min(now + _LIVES_S - _MARGIN_S, keys.expires_s - margin)
        return _Signer(signer.url, now, min(now + _SIGNER_S, expires), expires)

    def _place(self, bucket: str) -> Place:
        """Where botocore's rules put a bucket, read off a URL that it signs."""
        if bucket.endswith("--x-s3"):
            raise StoreError(
                f"s3://{bucket}: a directory bucket (S3 Express), which is not supported, expected "
                "a general purpose one"
            )
        if bucket not in self._places:
            probe = self._client(bucket).generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": "k"}
            )
            parts = urlsplit(probe)
            scope = parse_qs(parts.query).get("X-Amz-Credential", ["///"])[0].split("/")
            path = parts.path.removesuffix("k")
            default = ":443" if parts.scheme == "https" else ":80"
            self._places[bucket] = Place(
                base=f"{parts.scheme}://{parts.netloc}{path}",
                host=parts.netloc.lower().removesuffix(default),  # as clients send it
                path=path,
                region=scope[-3],
            )
        return self._places[bucket]

    def _keys(self) -> Keys:
        """The credentials as they are now; botocore renews temporary ones minutes before."""
        held = self._opened().get_credentials()
        from botocore.exceptions import NoCredentialsError

        if held is None:
            raise NoCredentialsError
        while True:
            until = getattr(held, "_expiry_time", None)  # botocore has no public name for it
            now = held.get_frozen_credentials()
            if getattr(held, "_expiry_time", None) == until:  # else renewed in between
                break
        return Keys(
            access_key=now.access_key,
            secret_key=now.secret_key,
            token=now.token,
            expires_s=math.inf if until is None else float(until.timestamp()),
        )

    def _opened(self) -> Any:
        """The session of botocore, which holds the credentials; `renew` forgets it."""
        try:
            import botocore.session
        except ImportError as error:
            raise StoreError(
                "boto3 is not installed, expected it to sign requests; pip install 'tarpon[s3]'"
            ) from error
        with self._lock:
            if self._session is None:
                self._session = botocore.session.Session(profile=self._store.profile)
            return self._session

    def _client(self, bucket: str) -> Any:
        with self._lock:
            region = self._regions.get(bucket, self._store.region)
            dots = "." in bucket  # which a wildcard certificate does not cover
            key = (region, "path" if dots else "")
            if key not in self._clients:
                self._clients[key] = self._new_client(region, dots=dots)
            return self._clients[key]

    def _new_client(self, region: str | None, *, dots: bool) -> Any:
        session = self._opened()
        from botocore import UNSIGNED
        from botocore.config import Config

        def made(style: str | None) -> Any:
            return session.create_client(
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
        styles = session.get_scoped_config().get("s3") or {}
        if "addressing_style" in styles:
            return client
        # Of a server of one's own, only the name of the host itself resolves. Of Amazon's, botocore
        # would sign for the host of all regions, which redirects.
        amazon = (urlsplit(client.meta.endpoint_url).hostname or "").endswith(_AMAZON)
        return made("virtual" if amazon and not dots else "path")


def _environment() -> tuple[str | None, ...]:
    """What a notebook, or a test, may change after the first use."""
    return tuple(map(os.environ.get, _TOLD_BY))


def _forget() -> None:
    """In a child of fork(): a thread that is not there may hold the lock."""
    S3._making = threading.Lock()
    S3._made.clear()


os.register_at_fork(after_in_child=_forget)


def split(url: str) -> tuple[str, str]:
    """Bucket and key, which may be empty, of ``s3://bucket/key``; a key is taken as it is."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StoreError(f"{url}: names no bucket, expected s3://bucket/key")
    if "@" in bucket or ":" in bucket:  # not shown: it may be AKID:SECRET@bucket
        raise StoreError(
            "s3://...: not the name of a bucket, expected s3://bucket/key; credentials come from "
            "the environment or a profile, and an access point is named by its alias"
        )
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
    elif isinstance(error, RuntimeError) and "still expired" in str(error):
        what = _MEANING["ExpiredToken"]
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
    elif isinstance(error, ValueError) or kind == "EndpointResolutionError":
        what = (
            "an endpoint that is no URL, expected http://host:port or https://host; check "
            "AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and the profile"
        )
    elif isinstance(error, RecursionError):
        what = (
            "sent from region to region without end, expected to be told one; set AWS_REGION, and "
            "check the endpoint"
        )
    else:
        what = f"{kind}, expected a signed URL; check the AWS configuration"
    return StoreError(f"{url}: {what}")
