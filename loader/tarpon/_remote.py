"""The network client of this process, and the thread that signs URLs for it.

Bytes come through core/http.h; Python only knows the credentials. One client per process, store and
time-out: datasets share its connections.
"""

from __future__ import annotations

import atexit
import os
import ssl
import threading
import time

from tarpon import _core
from tarpon._names import without_secrets
from tarpon.errors import StoreError
from tarpon.store import Store

_CONNECTIONS = 64
_TIMEOUT_S = 600.0
_LONGEST_S = 1e6  # what the core counts in milliseconds of 32 bits; eleven days are for ever
_STALL_S = 10.0

_SYSTEM_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat
    "/etc/ssl/ca-bundle.pem",  # SUSE
)

_lock = threading.Lock()
_clients: dict[tuple[int, Store, float], _core.Client] = {}


def client(store: Store | None, timeout_s: float | None = None) -> _core.Client:
    """The client of this process for `store`.

    Args:
        timeout_s: Longest that one read may take, tries included; ``None``: 600 s.
    """
    store = store or Store()
    timeout_s = _TIMEOUT_S if timeout_s is None else min(float(timeout_s), _LONGEST_S)
    key = (os.getpid(), store, timeout_s)
    with _lock:
        if key not in _clients:
            _clients[key] = _made(store, timeout_s)
        return _clients[key]


def read(url: str, store: Store | None, most_bytes: int) -> bytes:
    """A small file, whole.

    Args:
        url: ``s3://bucket/key``, or an ``http(s)://`` URL as it is.

    Raises:
        StoreError: It is not there, may not be read, or nobody answers; the message says which.
        CorruptShardError: It is larger than `most_bytes`.
    """
    signed = url.startswith("s3://")
    return client(store).read(without_secrets(url), None if signed else url, most_bytes)


def _made(store: Store, timeout_s: float) -> _core.Client:
    made = _core.Client(
        connections=store.connections or _CONNECTIONS,
        # Before a loader's own time-out, whose message could not say what went wrong.
        deadline_s=0.9 * timeout_s,
        stall_s=min(_STALL_S, timeout_s / 4),
        hedge=True,
        ca_file=_ca_file(store),
    )
    threading.Thread(target=_sign, args=(made, store), name="tarpon-signer", daemon=True).start()
    return made


def _ca_file(store: Store) -> str | None:
    """Certificates to trust: the wheel's libcurl only knows where those of its builder lie."""
    for path in (store.ca_bundle, *map(os.environ.get, ("AWS_CA_BUNDLE", "SSL_CERT_FILE"))):
        if path:
            return path
    try:
        import certifi
    except ImportError:
        places = (ssl.get_default_verify_paths().cafile, *_SYSTEM_CERTIFICATES)
        return next((path for path in places if path and os.path.exists(path)), None)
    return certifi.where()


def _sign(made: _core.Client, store: Store) -> None:
    """Sign what the client asks for, until the program ends. What goes wrong becomes its errors."""
    while True:
        asked = made.next_unsigned(1.0)
        if asked is None:
            continue
        ticket, name, refused, region = asked
        try:
            url, expires_s = _signed(name, store, refused, region)
            made.signed(ticket, url, max(expires_s - time.time(), 0.0), None)
        except StoreError as error:
            made.signed(ticket, None, 0.0, str(error).removeprefix(f"{name}: "))
        except Exception as error:  # anything, or the request would wait for its deadline
            made.signed(
                ticket, None, 0.0, f"{type(error).__name__} while its URL was signed; report this"
            )


def _signed(name: str, store: Store, refused: bool, region: str) -> tuple[str, float]:
    from tarpon._s3 import S3

    s3 = S3.of(store)
    if region:
        s3.region_hint(name, region)
    elif refused:
        s3.renew()
    return s3.sign(name)


def _forget_lock() -> None:
    """In a child of fork(): a thread that is not there may hold it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


@atexit.register
def _quiet() -> None:
    """Connections end before the libraries under them are unloaded."""
    with _lock:
        for (pid, _, _), made in _clients.items():
            if pid == os.getpid():
                made.quiet()
