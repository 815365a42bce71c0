"""The fsspec file system of each scheme: our time-outs, no listings kept, and as few retries of its own as it lets."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from mimcl.pipeline.files import DataError
from mimcl.pipeline.remote.errors import MEND, NO_CREDENTIALS, is_one_of
from mimcl.pipeline.remote.retry import Patience

_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp"}


def client_of(kind: str, patience: Patience) -> Any:
    """One for all folders: making a client takes a tenth of a second. Another one for another environment."""
    settings = ("AWS_", "BOTO", "GOOGLE_", "GCSFS_", "STORAGE_", "HF_", "FSSPEC_")
    environment = frozenset(setting for setting in os.environ.items() if setting[0].upper().startswith(settings))
    return _new_client(kind, patience, environment)


@lru_cache(maxsize=8)
def _new_client(kind: str, patience: Patience, environment: frozenset[tuple[str, str]]) -> Any:
    """fsspec keeps its own by their options only, not by the environment that they read as well."""
    import fsspec

    library = _LIBRARIES[kind]
    try:
        options: dict[str, Any] = {}
        if kind == "http":
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=patience.connect, sock_read=patience.read)
            # Compressed bodies have no ranges of the file; proxies and ~/.netrc count.
            headers = {"Accept-Encoding": "identity"}
            options = {"client_kwargs": {"timeout": timeout, "headers": headers, "trust_env": True}}
        elif kind == "s3":
            once = {"total_max_attempts": 1}  # the waiting between attempts is ours
            timeouts = {"connect_timeout": patience.connect, "read_timeout": patience.read}
            options = {"config_kwargs": {"retries": once, "max_pool_connections": 32, **timeouts}}
        elif kind == "gs":
            options = {"requests_timeout": patience.connect + patience.read}
        files = fsspec.filesystem(kind, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError:
        raise DataError(f"{kind}:// needs {library}: pip install 'mimcl[{kind}]'") from None
    except Exception as error:
        if is_one_of(error, NO_CREDENTIALS):
            raise DataError(f"{kind}://: no credentials ({type(error).__name__}); {MEND[kind]}") from None
        raise
    if kind == "s3":
        files.retries = 1
    return files
