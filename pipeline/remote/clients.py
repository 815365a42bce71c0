"""Make the fsspec file system of each URL scheme: our timeouts, no cached listings, no retries of its own."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from mimcl.pipeline.files import DataError
from mimcl.pipeline.remote.errors import CREDENTIALS_HINTS, NO_CREDENTIALS, is_caused_by
from mimcl.pipeline.remote.retry import RetryPolicy

_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp"}


def get_client(kind: str, policy: RetryPolicy) -> Any:
    """Return the file system of a scheme, shared by all folders: making one takes 0.1 s."""
    prefixes = ("AWS_", "BOTO", "GOOGLE_", "GCSFS_", "STORAGE_", "HF_", "FSSPEC_")
    environment = frozenset(setting for setting in os.environ.items() if setting[0].upper().startswith(prefixes))
    return _make_client(kind, policy, environment)


@lru_cache(maxsize=8)
def _make_client(kind: str, policy: RetryPolicy, environment: frozenset[tuple[str, str]]) -> Any:
    """Make a client. It depends on the environment too, which fsspec's own instance cache ignores."""
    import fsspec

    library = _LIBRARIES[kind]
    try:
        options: dict[str, Any] = {}
        if kind == "http":
            import aiohttp

            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=policy.connect_timeout, sock_read=policy.read_timeout
            )
            # Ranges of a compressed body are not ranges of the file. trust_env: use proxies and ~/.netrc.
            headers = {"Accept-Encoding": "identity"}
            options = {"client_kwargs": {"timeout": timeout, "headers": headers, "trust_env": True}}
        elif kind == "s3":
            once = {"total_max_attempts": 1}  # RemoteFolder retries
            timeouts = {"connect_timeout": policy.connect_timeout, "read_timeout": policy.read_timeout}
            options = {"config_kwargs": {"retries": once, "max_pool_connections": 32, **timeouts}}
        elif kind == "gs":
            options = {"requests_timeout": policy.connect_timeout + policy.read_timeout}
        client = fsspec.filesystem(kind, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError:
        raise DataError(f"{kind}:// needs {library}: pip install 'mimcl[{kind}]'") from None
    except Exception as error:
        if is_caused_by(error, NO_CREDENTIALS):
            raise DataError(f"{kind}://: no credentials ({type(error).__name__}); {CREDENTIALS_HINTS[kind]}") from None
        raise
    if kind == "s3":
        client.retries = 1
    return client
