"""Errors of requests that no retry can change, as one line that says what to do."""

from __future__ import annotations

from mimcl.pipeline.files import DataError
from mimcl.pipeline.remote.errors import (
    CREDENTIALS_HINTS,
    INVALID_CALL,
    NO_CREDENTIALS,
    NOT_IMPLEMENTED,
    RETRYABLE_STATUSES,
    causes,
    is_caused_by,
    status_of,
)


class NotFound(DataError):
    """The remote file does not exist."""


def refusal(error: BaseException, kind: str, where: str, reason: str) -> DataError | None:
    """Return the error to raise instead of one that a retry cannot fix; None for others.

    `kind` is the scheme, `where` the file's address without secrets, `reason` that of `reason_of`.
    """
    status, hint = status_of(error), CREDENTIALS_HINTS[kind]
    if status in (401, 403):
        return DataError(f"{where}: credentials refused (HTTP {status}), or the file does not exist; {hint}")
    if is_caused_by(error, NO_CREDENTIALS):
        return DataError(f"{where}: no credentials ({reason}); {hint}")
    if status in (404, 410):
        return NotFound(f"{where} not found (HTTP {status}); check the URL, or upload the file again")
    if is_caused_by(error, {"OfflineModeIsEnabled"}):
        return DataError(f"{where}: huggingface_hub is in offline mode; unset HF_HUB_OFFLINE, or give a local folder")
    is_refused = status is not None and 300 <= status < 500 and status not in RETRYABLE_STATUSES
    if is_refused or status in NOT_IMPLEMENTED:
        return DataError(f"{where}: request refused ({reason}); check the URL")
    if isinstance(error, INVALID_CALL) or is_caused_by(error, {"ParamValidationError"}):
        return DataError(f"{where}: invalid request ({reason}); check the URL")
    return None


def reason_of(error: BaseException, kind: str, has_secrets: bool) -> str:
    """Describe an error in one line, without the URL, which may be signed or contain a password."""
    status = status_of(error)
    if status is not None and kind in ("http", "hf"):  # their libraries' messages contain the URL
        return f"HTTP {status}"
    *_, first = causes(error)
    text = "" if has_secrets else " ".join(str(first).split())
    return f"{type(first).__name__}: {text:.200}".removesuffix(": ")
