"""Classify the errors of the libraries behind fsspec: HTTP status, missing credentials, invalid call."""

from __future__ import annotations

from collections.abc import Iterator

RETRYABLE_STATUSES = {408, 425, 429}  # besides most of 500 and above
NOT_IMPLEMENTED = {501, 505}  # the server will not do it later either
NO_CREDENTIALS = {  # names of exceptions, since the libraries that define them may not be installed
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    *("TokenRetrievalError", "DefaultCredentialsError", "RefreshError", "LocalTokenNotFoundError"),
}
NO_CONNECTION = {  # names of exceptions: unknown host, nobody listens, no route
    *("ClientConnectorError", "ClientConnectorDNSError", "ConnectionTimeoutError"),
    *("ConnectError", "ConnectTimeout", "EndpointConnectionError", "ConnectTimeoutError"),
}
INVALID_CALL = (TypeError, ValueError, AttributeError, NotImplementedError)  # a retry would fail too
CREDENTIALS_HINTS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`; FSSPEC_GS_TOKEN=anon "
    "for a public bucket",
    "hf": "set HF_TOKEN, or run `hf auth login`",
    "http": "put user and password into ~/.netrc",
}


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error, or the equivalent one; None for a transport error."""
    last = error
    for last in causes(error):
        response = getattr(last, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        found = (
            getattr(last, "status", None),
            getattr(last, "code", None) if type(last).__name__ == "HttpError" else None,  # gcsfs
            getattr(response, "status_code", None),
            metadata.get("HTTPStatusCode"),
        )
        for status in found:
            if isinstance(status, int) and status >= 100:
                return status
    if isinstance(last, FileNotFoundError):
        return 404
    if isinstance(last, PermissionError) or (isinstance(error, OSError) and str(error).startswith("Forbidden")):
        return 403
    return None


def is_caused_by(error: BaseException | None, names: set[str]) -> bool:
    """Whether the error or one of its causes is of a class with one of these names."""
    return any(type(cause).__name__ in names for cause in causes(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause of that, and so on: libraries wrap the original errors."""
    while error is not None:
        yield error
        error = error.__cause__
