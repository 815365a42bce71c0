"""A model repository of a hub, to which an export is uploaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mimcl.cli.errors import ConfigError
from mimcl.pipeline.files import DataError
from mimcl.pipeline.remote.errors import CREDENTIALS_HINTS, NO_CREDENTIALS, causes, is_caused_by, status_of
from mimcl.pipeline.remote.refusals import reason_of

_TIMEOUTS_S = (10, 60, 60, 60)  # connect, read, write, pool; the library's own client waits without end
_CARD = "README.md"
_HINT = CREDENTIALS_HINTS["hf"]


@dataclass(frozen=True)
class HubRepository:
    """A model repository, which need not exist yet."""

    name: str  # USER/NAME
    hub: str  # its address

    @property
    def url(self) -> str:
        return f"{self.hub}/{self.name}"

    @classmethod
    def find(cls, name: str) -> HubRepository:
        """Ask the hub who the user is, without changing anything there; a bare NAME is one of the user's own.

        Raises ConfigError for a malformed name, and if huggingface_hub or a token is missing; DataError if the hub does
        not answer, or refuses the token.
        """
        try:
            from huggingface_hub import HfApi, constants
            from huggingface_hub.errors import HFValidationError
            from huggingface_hub.utils import validate_repo_id
        except ImportError:
            raise ConfigError("--push needs huggingface_hub, which is not installed; pip install 'mimcl[hf]'") from None
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise ConfigError(
                f"--push is {name!r}; it must be NAME or USER/NAME, of letters, digits, '-', '_' and '.'"
            ) from None
        hub = constants.ENDPOINT
        with _errors(hub, name), _client():
            user = HfApi().whoami()["name"]
        return cls(name if "/" in name else f"{user}/{name}", hub)

    def upload(self, folder: Path, message: str, private: bool = False) -> None:
        """Create the repository unless it exists, and upload all files of a folder in one commit.

        Other files that are already in the repository are kept, and so are the entries of its model card's front matter
        that the new one lacks, such as a licence. Raises ConfigError if it exists and is public although it is to be
        private; DataError if the hub does not answer or refuses the upload.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        with _errors(self.hub, self.name), _client():
            api.create_repo(self.name, private=private or None, exist_ok=True)
            is_public = private and not api.model_info(self.name).private
        if is_public:
            raise ConfigError(f"--private: {self.url} exists and is public; give another --push, or change it there")
        with _errors(self.hub, self.name), _client():
            contents: dict[str, str | bytes] = {
                path.relative_to(folder).as_posix(): str(path) for path in sorted(folder.rglob("*")) if path.is_file()
            }
            contents[_CARD] = self._with_known_entries((folder / _CARD).read_text("utf-8")).encode()
            added = [CommitOperationAdd(name, content) for name, content in contents.items()]
            api.create_commit(self.name, added, commit_message=message)  # unlike upload_folder, always a single commit

    def _with_known_entries(self, card: str) -> str:
        """Add what the front matter of the repository's present model card says and that of `card` does not."""
        from huggingface_hub import ModelCard, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            known = ModelCard(Path(hf_hub_download(self.name, _CARD)).read_text("utf-8")).data.to_dict()
        except EntryNotFoundError:
            return card
        new = ModelCard(card)
        missing = {key: value for key, value in known.items() if key not in new.data.to_dict()}
        if not missing:
            return card
        for key, value in missing.items():
            new.data[key] = value
        return str(new)


@contextmanager
def _client() -> Iterator[None]:
    """Let the library's client time out, and draw its progress bars only on a terminal."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    client, hides_bars = get_session(), not sys.stderr.isatty() and not are_progress_bars_disabled()
    usual = client.timeout
    client.timeout = _TIMEOUTS_S
    if hides_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        client.timeout = usual
        if hides_bars:
            enable_progress_bars()


@contextmanager
def _errors(hub: str, name: str) -> Iterator[None]:
    """Raise the errors of the library and of its HTTP client as a line that says what to do."""
    try:
        yield
    except Exception as error:
        status = status_of(error)
        if is_caused_by(error, {"OfflineModeIsEnabled"}):
            raise ConfigError("--push needs the hub, but HF_HUB_OFFLINE is set; unset it") from None
        if is_caused_by(error, NO_CREDENTIALS):
            raise ConfigError(f"--push needs a token of {hub}; {_HINT}") from None
        said = " ".join(str(getattr(error, "server_message", None) or "").split())
        reason = f"HTTP {status}: {said:.200}" if status and said else reason_of(error, "hf", has_secrets=False)
        if status == 401:
            raise DataError(f"{hub} refused the token ({reason}); {_HINT}") from None
        if status == 403:
            advice = f"give the token write access to {name}, or another --push"
            raise DataError(f"{hub} refused the upload to {name} ({reason}); {advice}") from None
        if status is None and any(isinstance(cause, OSError) or _is_of_client(cause) for cause in causes(error)):
            raise DataError(f"{hub} cannot be reached ({reason}); check the network, and HF_ENDPOINT") from None
        raise DataError(f"uploading to {name} failed ({reason}); try again") from None


def _is_of_client(error: BaseException) -> bool:
    """Whether an error is of the HTTP client: httpx or, in recent versions of huggingface_hub, httpx2."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2")
