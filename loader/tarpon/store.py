"""How remote shards are reached. Plain values; nothing here touches a network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

_MOST_CONNECTIONS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where an S3 store is and how to talk to it; what is left out comes from the environment.

        tarpon.Loader("s3://photos/v3/train.json", store=tarpon.Store(profile="research"), ...)

    Credentials are never given here. They come from botocore's chain, as for the AWS command line:
    the environment, ``~/.aws`` (profiles, SSO), a web identity, a container's or an instance's
    role; temporary ones are renewed while a loader runs. Proxies are those of ``HTTPS_PROXY`` and
    ``NO_PROXY``.

    Args:
        endpoint: URL of a server that is not Amazon's. Default ``AWS_ENDPOINT_URL_S3``, then
            ``AWS_ENDPOINT_URL``, then the profile's.
        region: Default ``AWS_REGION`` or ``AWS_DEFAULT_REGION``, then the profile's.
        profile: Of ``~/.aws/config``. Default ``AWS_PROFILE``.
        unsigned: Send no credentials: for public buckets.
        requester_pays: Agree to pay for what is read.
        addressing: ``"virtual"`` (``bucket.host/key``) or ``"path"`` (``host/bucket/key``);
            ``"auto"``: virtual for Amazon, path for other servers.
        ca_bundle: PEM file of certificates to trust, for ``https://`` shards too. Default
            ``AWS_CA_BUNDLE``, ``SSL_CERT_FILE``, certifi's, the system's. Verification is always
            on.
        connections: At once, for all loaders of a process that share these values, 1 to 1024;
            default 64.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    unsigned: bool = False
    requester_pays: bool = False
    addressing: Literal["auto", "virtual", "path"] = "auto"
    ca_bundle: str | None = None
    connections: int | None = None

    def __post_init__(self) -> None:
        _check_endpoint(self.endpoint)
        for name in ("region", "profile", "ca_bundle"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"{name}={value!r}, expected a str that is not empty, or None")
        if self.region is not None and not re.fullmatch(r"[a-z0-9-]+", self.region):
            raise ValueError(f"region={self.region!r}, expected a name such as 'eu-central-1'")
        for name in ("unsigned", "requester_pays"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}, expected True or False")
        if self.unsigned and self.requester_pays:
            raise ValueError("unsigned and requester_pays, expected one: who pays must sign")
        if self.addressing not in ("auto", "virtual", "path"):
            raise ValueError(
                f"addressing={self.addressing!r}, expected 'auto', 'virtual' or 'path'"
            )
        most = _MOST_CONNECTIONS
        if self.connections is not None and not (
            type(self.connections) is int and 1 <= self.connections <= most
        ):
            raise ValueError(f"connections={self.connections!r}, expected 1 to {most}, or None")


def _check_endpoint(endpoint: object) -> None:
    """Never shows it: what is wrong with it may be a password in it."""
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint if isinstance(endpoint, str) else "")
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        good = good and not (parts.query or parts.fragment)
        _ = parts.port  # raises
    except ValueError:
        good = False
    if not good:
        raise ValueError("endpoint: not a URL of a server, expected such as 'https://host:9000'")
    if "@" in parts.netloc:
        raise ValueError(
            "endpoint: has a user or password in it, expected such as 'https://host:9000'; "
            "credentials come from the environment or a profile"
        )
