"""What an object store or botocore refused, as a `StoreError` that says what to do.

Never shows what may hold a secret: the output of a credential command, a query, a header.
"""

from __future__ import annotations

from typing import Any

from tarpon.errors import StoreError

# By the code in the store's answer.  Stores that are not AWS's send fewer of them.
_RENEW = "renew them (log in again, or start the job with fresh ones)"
_BY_CODE = {
    "NoSuchBucket": "no such bucket, expected one that exists; check the name and the endpoint",
    "NoSuchKey": "no such object, expected a tar or a shard list; check the key",
    "AccessDenied": (
        "access denied, expected leave to read it; check s3:GetObject and s3:ListBucket of these "
        "credentials (without the latter, what is not there is denied too)"
    ),
    "InvalidAccessKeyId": (
        "the store does not know the access key, expected one of its own; check the profile, "
        "AWS_ACCESS_KEY_ID and the endpoint"
    ),
    "SignatureDoesNotMatch": (
        "the store computed another signature, expected the same; check the secret key, and that "
        "no proxy changes the host or the path"
    ),
    "ExpiredToken": f"the temporary credentials have expired, expected valid ones; {_RENEW}",
    "InvalidToken": (
        "the session token is not of these keys, expected one that belongs to them; check "
        "AWS_SESSION_TOKEN"
    ),
    "RequestTimeTooSkewed": (
        "the store's clock and this machine's differ too much, expected at most minutes; set the "
        "clock (NTP)"
    ),
    "PermanentRedirect": (
        "the bucket is in another region, expected the one asked; set Store(region=...) or "
        "AWS_REGION"
    ),
    "InvalidObjectState": (
        "the object is archived, expected a storage class that can be read at once; restore it"
    ),
    "SlowDown": "the store asks for fewer requests, expected an answer; lower Store(connections=)",
}
_SAME = {
    "404": "NoSuchKey",
    "403": "AccessDenied",
    "301": "PermanentRedirect",
    "Forbidden": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "InvalidTokenId": "InvalidToken",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "AuthorizationQueryParametersError": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "TemporaryRedirect": "PermanentRedirect",
    "RequestTimeTooSkewedException": "RequestTimeTooSkewed",
    "503": "SlowDown",
    "ServiceUnavailable": "SlowDown",
}
# By the class of botocore's exception, or one it is made from.
_BY_CLASS = {
    "NoCredentialsError": (
        "no credentials found, expected some; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
        "AWS_PROFILE, give the pod or instance a role, or pass Store(unsigned=True) for a public "
        "bucket"
    ),
    "PartialCredentialsError": (
        "half of the credentials is missing, expected an access key and its secret key; set both "
        "in the environment or the profile"
    ),
    "ProfileNotFound": (
        "no such profile, expected one of ~/.aws/config; check AWS_PROFILE or Store(profile=...)"
    ),
    "ConfigParseError": "~/.aws/config or credentials is not an INI file; correct it",
    "ConfigNotFound": "a configuration file is not there; check AWS_CONFIG_FILE",
    "UnauthorizedSSOTokenError": "the SSO login has expired; run `aws sso login`",
    "SSOTokenLoadError": "no SSO login found; run `aws sso login`",
    "TokenRetrievalError": "the SSO login has expired; run `aws sso login`",
    "LoginRefreshTokenExpired": "the login has expired; run `aws login`",
    "CredentialRetrievalError": (
        "the profile's credential_process, or where else its credentials come from, failed; run "
        "it by hand and see (its output is not shown here: it may hold secrets)"
    ),
    "MetadataRetrievalError": (
        "the metadata service gave no credentials, expected those of a role; check the role of "
        "the pod or instance"
    ),
    "RefreshWithMFAUnsupportedError": "the credentials need an MFA code again; log in again",
    "NoRegionError": "no region found; set AWS_REGION or Store(region=...)",
    "InvalidRegionError": "the region is not a name of one; check AWS_REGION",
    "ConnectTimeoutError": (
        "no connection to the store in time; check the endpoint, the network and the proxy"
    ),
    "SSLError": (
        "the store's certificate was not accepted; check the endpoint, and set "
        "Store(ca_bundle=...) or AWS_CA_BUNDLE if its authority is your own"
    ),
    "ProxyConnectionError": "no connection to the proxy; check HTTPS_PROXY and NO_PROXY",
    "ConnectionError": (
        "no connection to the store; check the endpoint (Store(endpoint=...), "
        "AWS_ENDPOINT_URL_S3) and the network"
    ),
    "ReadTimeoutError": "no answer from the store in time; try again, or check the network",
    "HTTPClientError": "the connection broke before the answer was whole; try again",
    "ResponseParserError": "the answer is not S3's; check that the endpoint is an S3 API",
    "MissingDependencyException": "these credentials need a package; pip install 'botocore[crt]'",
}


def refused(where: str, status: int, code: str | None = None) -> StoreError:
    """A store's answer other than success.

    Args:
        where: The place as it may be shown.
        status: Of HTTP.
        code: The S3 error code in the body; ``None``: it had none.
    """
    name = code or str(status)
    name = _SAME.get(name, name)
    if name not in _BY_CODE:
        by_status = _SAME.get(str(status), "")
        text = _BY_CODE.get(by_status, "expected the object or its listing; check the endpoint")
        return StoreError(
            f"{where}: the store answered {status} {code or ''}".rstrip() + f", {text}"
        )
    answer = f"HTTP {status}, {code}" if code and code != str(status) else f"HTTP {status}"
    return StoreError(f"{where}: {_BY_CODE[name]} ({answer})")


def explained(where: str, error: Exception) -> StoreError:
    """An exception of botocore. Raise it ``from None``: the original's text may hold secrets."""
    answer: Any = getattr(error, "response", None)  # a ClientError has one
    if isinstance(answer, dict):
        code = str(answer.get("Error", {}).get("Code") or "")
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
        if getattr(error, "operation_name", None) == "AssumeRoleWithWebIdentity":
            return StoreError(
                f"{where}: the web identity was refused ({code}), expected a role that trusts it; "
                "check AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE"
            )
        return refused(where, int(status), code or None)
    for base in type(error).__mro__:
        if base.__name__ in _BY_CLASS:
            return StoreError(f"{where}: {_BY_CLASS[base.__name__]}")
    if isinstance(error, RuntimeError) and "still expired" in str(error):
        return StoreError(f"{where}: {_BY_CODE['ExpiredToken']}")
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return StoreError(
            f"{where}: the endpoint is not a URL, expected such as https://host:9000; check "
            "AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and the profile's endpoint_url"
        )
    return StoreError(
        f"{where}: {type(error).__name__} of botocore, expected an answer of the store; check the "
        "endpoint, the profile and AWS_* in the environment"
    )
