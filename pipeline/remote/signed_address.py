"""Addresses that a server signed for a limited time, and when they expire."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

_UNKNOWN_LIFE_S = 300.0  # of an address that does not say when it expires
_MARGIN_S, _MARGIN = 60.0, 0.1  # no request starts in this last part of a lifetime: seconds and share, the smaller one


class Address(NamedTuple):
    """A URL that needs no credentials."""

    url: str
    expires: float  # time.time() after which it is not used


def signed_address(url: str, headers: Mapping[str, str]) -> Address:
    """Return the address that an answer with these headers redirects to.

    Its lifetime is counted from the answer's Date, so that a wrong clock of this machine does not matter.
    """
    now = sent = time.time()
    with suppress(ValueError, TypeError):
        sent = parsedate_to_datetime(headers.get("Date", "")).timestamp()
    expiry = expiry_of(url, sent)
    life = expiry - sent if expiry is not None and expiry > sent else _UNKNOWN_LIFE_S
    return Address(url, now + life - min(_MARGIN_S, _MARGIN * life))


def expiry_of(url: str, now: float) -> float | None:
    """Return when a signed URL expires, in seconds since 1970; None if it does not say. The earliest of several.

    Known are AWS's and Google's signatures (X-Amz-Expires and X-Goog-Expires: seconds after a date, else after `now`),
    CloudFront's policies, Azure's `se`, and `Expires` and `exp`: seconds since 1970.
    """
    query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
    found = [_number(query.get("expires")), _time(query.get("se")), _of_policy(query.get("policy", ""))]
    found += map(_number, re.findall(r"\bexp=(\d+)", unquote(url)))  # also within a token
    for cloud in ("x-amz", "x-goog"):
        start, life = _time(query.get(f"{cloud}-date")), _number(query.get(f"{cloud}-expires"))
        found.append(None if life is None else (now if start is None else start) + life)
    return min((moment for moment in found if moment is not None), default=None)


def _number(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None


def _time(text: str | None) -> float | None:
    with suppress(ValueError):
        moment = datetime.fromisoformat(text or "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None


def _of_policy(text: str) -> float | None:
    """Return the expiry of a CloudFront policy, which is JSON in base64 with three characters replaced."""
    with suppress(ValueError):
        content = base64.b64decode(text.translate(str.maketrans("-_~", "+=/")))
        if found := re.search(rb'"DateLessThan"\s*:\s*{\s*"AWS:EpochTime"\s*:\s*(\d+)', content):
            return float(found[1])
    return None
