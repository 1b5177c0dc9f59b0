"""How remote shards are reached: options only. Holds no credentials, opens nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

_REGION = re.compile(r"[a-z0-9-]{1,40}")
_ADDRESSING = ("auto", "path", "virtual")
_MOST_CONNECTIONS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """How ``s3://`` and ``https://`` shards are reached; what is left out, the environment tells.

        tarpon.Loader("s3://photos/train.json", batch_size=256,
                      store=tarpon.Store(endpoint="https://minio.example.org:9000"))

    Credentials are never options. They come from where boto3 finds them: ``AWS_ACCESS_KEY_ID``
    and its fellows, a profile of ``~/.aws`` (keys, SSO, ``credential_process``, assumed roles), a
    web identity (EKS, Kubernetes service accounts), ECS or EKS pod credentials, or the instance's
    metadata service (IMDSv2). Temporary ones are renewed before they expire.

    Args:
        endpoint: URL of the store, ``https://host[:port]``. ``None``: ``AWS_ENDPOINT_URL_S3``,
            ``AWS_ENDPOINT_URL``, the profile's ``endpoint_url``, else AWS itself.
        region: Such as ``"eu-central-1"``. ``None``: ``AWS_REGION``, ``AWS_DEFAULT_REGION``, the
            profile's, else ``us-east-1``; a bucket of another region is found all the same.
        profile: Name in ``~/.aws/config``. ``None``: ``AWS_PROFILE``, else ``default``.
        unsigned: Sign nothing and look for no credentials: public buckets.
        requester_pays: Agree to pay for requests to buckets that ask for it.
        addressing: Where a bucket's name goes: ``"path"`` (``https://host/bucket/key``),
            ``"virtual"`` (``https://bucket.host/key``) or ``"auto"``, which is the profile's
            ``s3.addressing_style``, else virtual for AWS and path for any other endpoint.
        ca_bundle: File of the certificates to trust, PEM. ``None``: ``AWS_CA_BUNDLE``, the
            profile's ``ca_bundle``, else the usual ones.
        connections: How many requests may be under way at once. ``None``: the loader decides.

    Raises:
        ValueError: An option that cannot be.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    unsigned: bool = False
    requester_pays: bool = False
    addressing: Literal["auto", "path", "virtual"] = "auto"
    ca_bundle: str | None = None
    connections: int | None = None

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            _check_endpoint(self.endpoint)
        if self.region is not None and not _is(_REGION, self.region):
            raise ValueError(f"region={self.region!r}, expected a name such as 'eu-central-1'")
        if self.profile is not None and not (isinstance(self.profile, str) and self.profile):
            raise ValueError(f"profile={self.profile!r}, expected a name in ~/.aws/config")
        for name in ("unsigned", "requester_pays"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}, expected True or False")
        if self.unsigned and self.requester_pays:
            raise ValueError(
                "unsigned=True and requester_pays=True, expected one of them: who pays must sign"
            )
        if self.addressing not in _ADDRESSING:
            raise ValueError(
                f"addressing={self.addressing!r}, expected one of {', '.join(_ADDRESSING)}"
            )
        if self.ca_bundle is not None:
            if not isinstance(self.ca_bundle, str | os.PathLike) or not os.fspath(self.ca_bundle):
                raise ValueError(f"ca_bundle={self.ca_bundle!r}, expected the path of a file")
            object.__setattr__(self, "ca_bundle", os.fspath(self.ca_bundle))
        if self.connections is not None and not (
            type(self.connections) is int and 1 <= self.connections <= _MOST_CONNECTIONS
        ):
            raise ValueError(
                f"connections={self.connections!r}, expected 1 to {_MOST_CONNECTIONS} or None"
            )


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _check_endpoint(endpoint: object) -> None:
    """Never shows the endpoint: what is wrong with it may be the secret in it."""
    expected = "expected such as 'https://host:9000'"
    try:
        parts = urlsplit(endpoint if isinstance(endpoint, str) else "")
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises
    except ValueError:
        raise ValueError(f"endpoint: not a URL, {expected}") from None
    if not good:
        raise ValueError(f"endpoint: not an http:// or https:// URL, {expected}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"endpoint: has a user name or password in it, {expected}; credentials come from the "
            "environment or a profile"
        )
    if parts.query or parts.fragment:
        raise ValueError(f"endpoint: has a query or fragment, {expected}")
