"""Waiting for a tracking server that is away; it knows MLflow's errors, and nothing of a run."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import mlflow
from botocore.exceptions import ConnectionError as S3ConnectionError
from botocore.exceptions import HTTPClientError
from mlflow.exceptions import InvalidUrlException, MlflowException
from requests import HTTPError

from components.store import without_secrets

PATIENCE_S = 600.0
"""How long a step waits for a tracking server that is away, where it cannot go on without it."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""Between two attempts; each pause is twice the one before."""

_AWAY_CODES = {"TEMPORARILY_UNAVAILABLE", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED",
               "DEADLINE_EXCEEDED", "CANCELLED"}  # fmt: skip
_AWAY_TEXTS = ("API request to ", "API request failed with error code 5")
"""How the client's own words begin for a request without a usable answer; what a server says for
itself comes with a code."""

_OF_FILES = {errno.EACCES, errno.EDQUOT, errno.EISDIR, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR,
             errno.EPERM, errno.EROFS}  # fmt: skip

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class TrackingError(RuntimeError):
    """MLflow does not answer, or does not hold what a step was told it holds; it is named."""


def is_away(error: BaseException) -> bool:
    """Whether the server gave no answer that can be believed: later the same request may do."""
    if isinstance(error, InvalidUrlException):
        return False
    if isinstance(error, MlflowException):
        said = str(error.message)
        return error.error_code in _AWAY_CODES or any(text in said for text in _AWAY_TEXTS)
    if isinstance(error, HTTPClientError | S3ConnectionError):  # artifacts go straight to a bucket
        return True
    if isinstance(error, HTTPError):  # an answer: only those of 5xx and 429 may be another later
        return error.response is None or error.response.status_code in (429, *range(500, 600))
    # requests' and urllib3's errors are OSErrors too; a full disk here is no absent server.
    return isinstance(error, OSError) and error.errno not in _OF_FILES


def reason(error: BaseException) -> str:
    """An error of MLflow in one line and without secrets.

    Of the client's chain of wrapped errors only the innermost says what happened.
    """
    if is_away(error):
        while (inner := error.__cause__ or error.__context__) is not None:
            error = inner
    text = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(text)[:300]


def server() -> str:
    """The tracking server's address, fit for a message."""
    return without_secrets(mlflow.get_tracking_uri())


def patiently(call: Callable[[], _T], *, patience_s: float = PATIENCE_S) -> _T:
    """What `call` returns, however often it takes while the server is away.

    `call` must be safe to repeat: an attempt may have done its work and lost the answer.

    Raises:
        TrackingError: No answer within `patience_s` seconds.
        MlflowException: The server says no.
    """
    start, pause_s, said = time.monotonic(), FIRST_PAUSE_S, False
    while True:
        try:
            result = call()
        except Exception as error:
            if not is_away(error):
                raise
            left_s = start + patience_s - time.monotonic()
            if left_s <= 0:
                raise TrackingError(
                    f"mlflow at {server()}: no answer in {patience_s:.0f} s ({reason(error)}), "
                    "expected a tracking server; check MLFLOW_TRACKING_URI and that it runs, then "
                    "run the same command again"
                ) from None
            if not said:
                _log.warning(
                    "mlflow at %s does not answer (%s); waiting up to %.0f s for it",
                    server(), reason(error), patience_s,
                )  # fmt: skip
                said = True
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        else:
            if said:
                _log.warning(
                    "mlflow at %s answers again after %.0f s", server(), time.monotonic() - start
                )
            return result
