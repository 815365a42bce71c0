"""What the libraries behind fsspec mean by their errors: an HTTP code, missing credentials, a call that was wrong."""

from __future__ import annotations

TRY_AGAIN = {408, 425, 429}  # of the HTTP codes below 500
NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    *("TokenRetrievalError", "DefaultCredentialsError", "RefreshError", "LocalTokenNotFoundError"),
}
OUR_FAULT = (TypeError, ValueError, AttributeError, NotImplementedError)  # and so no reason to try again
MEND = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`; FSSPEC_GS_TOKEN=anon "
    "for a public bucket",
    "hf": "set HF_TOKEN, or run `hf auth login`",
    "http": "put user and password into ~/.netrc",
}


def status_of(error: BaseException | None) -> int | None:
    """The HTTP code behind an error, or the one that it stands for; None for trouble on the way."""
    first = error
    while error is not None:
        response = getattr(error, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        found = (
            getattr(error, "status", None),
            getattr(error, "code", None) if type(error).__name__ == "HttpError" else None,  # gcsfs's
            getattr(response, "status_code", None),
            metadata.get("HTTPStatusCode"),
        )
        for status in found:
            if isinstance(status, int) and status >= 100:
                return status
        last, error = error, error.__cause__
    if isinstance(last, FileNotFoundError):
        return 404
    if isinstance(last, PermissionError) or (isinstance(first, OSError) and str(first).startswith("Forbidden")):
        return 403
    return None


def is_one_of(error: BaseException | None, names: set[str]) -> bool:
    """Whether it, or what it came from, is called so; the libraries that define them need not be there."""
    while error is not None:
        if type(error).__name__ in names:
            return True
        error = error.__cause__
    return False
