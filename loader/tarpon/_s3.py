"""The S3 side of names: lists buckets and signs URLs, by botocore's credentials and endpoints.

Moves no object data: the core reads by the URLs signed here. botocore is imported when the first
``s3://`` URL is met.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tarpon._presign import ALGORITHM, Keys, Place, Presigner, escaped
from tarpon._s3_errors import explained
from tarpon._url import bucket_and_key
from tarpon.errors import StoreError, TarponError
from tarpon.store import Store

_LIFETIME_S = 3600
"""Of a signed URL: as long as one epoch over a shard may take; short if it leaks."""
_REUSE_S = 30.0
"""How long one signer serves: botocore is asked no oftener whether credentials changed."""
_MARGIN_S = 60.0
"""How long before the end a URL counts as expired: clocks differ, requests wait in line."""
_RENEW_EVERY_S = 1.0
"""Of ten thousand refused requests only the first renews: metadata services throttle."""
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_AWS = re.compile(r"\.amazonaws\.com(\.cn)?$")


@dataclass(frozen=True, slots=True)
class Found:
    """An object that a listing named."""

    url: str
    bytes: int
    etag: str | None


@dataclass(frozen=True, slots=True)
class _Signer:
    url: Callable[[str], str]
    from_s: float
    until_s: float
    expires_s: float


class S3:
    """One store as one process reaches it. Any number of threads may use it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._session: Any = None
        self._clients: dict[str | None, Any] = {}
        self._regions: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        self._signers: dict[str, _Signer] = {}
        self._renewed = (0, float("-inf"))  # how often, and when last on the monotonic clock

    def below(self, url: str, *, deep: bool = True, page_keys: int = 1000) -> list[Found]:
        """Objects whose URL begins with `url`, in the order of their keys' bytes.

        Markers of folders (keys that end in ``/``) are left out. One request per `page_keys`.

        Args:
            url: ``s3://bucket/prefix``; a prefix of text, not of folders.
            deep: Also those with another ``/`` after the prefix.
            page_keys: Objects per request, at most 1000.

        Raises:
            StoreError: The bucket cannot be listed.
        """
        bucket, prefix = bucket_and_key(url)
        options: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        if not deep:
            options["Delimiter"] = "/"
        if self._store.requester_pays:
            options["RequestPayer"] = "requester"
        found = []
        with _errors_at(url):
            client = self._client(bucket)
            aws = _AWS.search(urlsplit(client.meta.endpoint_url).hostname or "")
            pages = client.get_paginator("list_objects_v2").paginate(
                **options, PaginationConfig={"PageSize": page_keys}
            )
            for page in pages:
                # botocore followed the bucket to its region; other stores make regions up
                region = page["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
                if aws and region:
                    self.region_hint(url, region)
                found += [
                    Found(f"s3://{bucket}/{each['Key']}", int(each["Size"]), each.get("ETag"))
                    for each in page.get("Contents", [])
                    if not each["Key"].endswith("/")
                ]
        return found

    def sign(self, url: str) -> tuple[str, float]:
        """A URL that answers GET for `url` (a secret), and when to ask for another: Unix seconds.

        That is before the URL and before temporary credentials expire; infinite for unsigned ones.
        The `Range` and `If-Match` headers may be sent beside it; they are not signed. Asks the
        network only for credentials, where they come from there.

        Raises:
            StoreError: No credentials, or not to be had.
        """
        bucket, key = bucket_and_key(url)
        if not key:
            raise StoreError(f"{url}: a bucket, expected an object; append its key")
        signer = self._signers.get(bucket)
        if signer is None or not signer.from_s <= time.time() < signer.until_s:
            with self._lock, _errors_at(url):
                signer = self._signers[bucket] = self._new_signer(bucket)
        return signer.url(key), signer.expires_s

    def renew(self) -> None:
        """Get credentials anew, wherever they come from: for when the store answered 400 or 403.

        Threads that call at once share one renewal. Sign again afterwards.

        Raises:
            StoreError: None to be had.
        """
        times = self._renewed[0]
        with self._lock:
            now = time.monotonic()
            if self._renewed[0] != times or now - self._renewed[1] < _RENEW_EVERY_S:
                return
            self._session, self._clients = None, {}
            self._signers.clear()
            if not self._store.unsigned:
                with _errors_at("S3 credentials"):
                    self._keys()
            self._renewed = (times + 1, time.monotonic())

    def region_hint(self, url: str, region: str) -> bool:
        """Take the word of an answer (``x-amz-bucket-region``) for where the bucket of `url` is.

        Returns:
            Whether that is news, and so whether signing again may help.
        """
        bucket = bucket_and_key(url)[0]
        if not _REGION.fullmatch(region):
            return False
        with self._lock:
            place = self._places.get(bucket)
            known = self._regions.get(bucket) or (place.region if place else None)
            self._regions[bucket] = region
            if known == region:
                return False
            self._places.pop(bucket, None)
            self._signers.pop(bucket, None)
            return True

    def _client(self, bucket: str) -> Any:
        with self._lock:
            region = self._regions.get(bucket, self._store.region)
            if region not in self._clients:
                self._clients[region] = self._new_client(region)
            return self._clients[region]

    def _new_client(self, region: str | None) -> Any:
        from botocore import UNSIGNED
        from botocore.config import Config

        store = self._store
        if store.ca_bundle is not None and not os.path.isfile(store.ca_bundle):
            raise StoreError(f"{store.ca_bundle}: no such file, expected ca_bundle's certificates")
        return self._botocore_session().create_client(
            "s3",
            region_name=region,
            endpoint_url=store.endpoint,
            verify=store.ca_bundle,
            config=Config(
                signature_version=UNSIGNED if store.unsigned else "s3v4",
                s3=None if store.addressing == "auto" else {"addressing_style": store.addressing},
                connect_timeout=10,
                read_timeout=60,
            ),
        )

    def _botocore_session(self) -> Any:
        from botocore.session import Session

        with self._lock:
            if self._session is None:
                self._session = Session(profile=self._store.profile)
            return self._session

    def _new_signer(self, bucket: str) -> _Signer:
        place = self._place(bucket)
        now = time.time()
        if self._store.unsigned:
            forever = float("inf")
            return _Signer(lambda key: place.base + escaped(key), 0.0, forever, forever)
        keys = self._keys()
        signer = Presigner(
            place,
            keys,
            now_s=now,
            lifetime_s=_LIFETIME_S,
            requester_pays=self._store.requester_pays,
        )
        # credentials of a few seconds are for tests, but must be usable for most of them
        margin = min(_MARGIN_S, max(keys.expires_s - now, 0.0) / 10)
        expires = min(now + _LIFETIME_S - _MARGIN_S, keys.expires_s - margin)
        return _Signer(signer.url, now, min(now + _REUSE_S, expires), expires)

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
            parts, query = urlsplit(probe), parse_qs(urlsplit(probe).query)
            region, service = "", "s3"
            if not self._store.unsigned:
                scope = query.get("X-Amz-Credential", [""])[0].split("/")
                if query.get("X-Amz-Algorithm") != [ALGORITHM]:
                    raise StoreError(
                        f"s3://{bucket}: not signed by {ALGORITHM}, expected a bucket of one region"
                    )
                region, service = scope[-3], scope[-2]
            path = parts.path.removesuffix("k")
            self._places[bucket] = Place(
                base=f"{parts.scheme}://{parts.netloc}{path}",
                host=_host_header(parts.scheme, parts.netloc),
                path=path,
                region=region,
                service=service,
            )
        return self._places[bucket]

    def _keys(self) -> Keys:
        """The credentials as they are now; botocore refreshes temporary ones as it is asked."""
        from botocore.exceptions import NoCredentialsError

        credentials = self._botocore_session().get_credentials()
        if credentials is None:
            raise NoCredentialsError
        while True:
            # no public name: without it, URLs of credentials that end within the hour would fail
            ends = getattr(credentials, "_expiry_time", None)
            frozen = credentials.get_frozen_credentials()
            if getattr(credentials, "_expiry_time", None) == ends:  # else refreshed in between
                break
        if not frozen.access_key or not frozen.secret_key:
            raise NoCredentialsError
        return Keys(
            access_key=frozen.access_key,
            secret_key=frozen.secret_key,
            token=frozen.token,
            expires_s=ends.timestamp() if ends is not None else float("inf"),
        )


def of(store: Store | None) -> S3:
    """The one `S3` of this process for `store`; another one once AWS_* of the environment changed.

    A child after ``fork()`` makes its own: the parent's locks and connections are not its.

    Raises:
        StoreError: boto3 is not installed.
    """
    global _made
    try:
        import botocore.session  # noqa: F401
    except ImportError:
        raise StoreError(
            "s3://: boto3 is not installed, expected it for s3:// URLs; pip install 'tarpon[s3]'"
        ) from None
    store = store or Store()
    environment = hash(frozenset(item for item in os.environ.items() if item[0][:4] == "AWS_"))
    with _lock:
        known, s3 = _made.get(store, (0, None))
        if s3 is None or known != environment:
            s3 = S3(store)
            _made[store] = environment, s3
        return s3


def _forget() -> None:
    global _lock, _made
    _lock, _made = threading.Lock(), {}


_lock = threading.Lock()
_made: dict[Store, tuple[int, S3 | None]] = {}
os.register_at_fork(after_in_child=_forget)


def _host_header(scheme: str, netloc: str) -> str:
    """As HTTP clients send it: in small letters, without the port that is the scheme's own."""
    default = ":443" if scheme == "https" else ":80"
    return netloc.rpartition("@")[2].lower().removesuffix(default)


@contextmanager
def _errors_at(url: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except TarponError:
        raise
    # the last three from the files and endpoints of others, which botocore hands on
    except (BotoCoreError, ClientError, OSError, RuntimeError, ValueError) as error:
        raise explained(url, error) from None
