"""Adapters of a Hugging Face hub: only repositories that the operator lists, each at one commit; off without a list.

    NAME=OWNER/REPOSITORY@<40 hex digits>[/FOLDER]

A commit never changes, so a name means the same bytes for ever. Branches and tags move, and are refused. Only the files
of an adapter are downloaded, never code or pickles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.manifest import ADAPTER_FILES, NEEDED_FILES, Manifest
from adapter.names import Reference, check_name
from inference.errors import AdapterLoadFailed, AdapterNotFound, InvalidRequest, SourceUnavailable
from inference.resolver import KnownVersion, Version
from inference.resolver.flights import Flights
from inference.resolver.intake import Intake
from inference.resolver.modules import names

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_PIN = re.compile(rf"(?P<repo>{_PART}/{_PART})@(?P<commit>[0-9a-f]{{40}})(?:/(?P<folder>{_PART}(?:/{_PART})*))?")


@dataclass(frozen=True, slots=True)
class Pin:
    """A folder of a repository at a commit."""

    name: str
    repository: str
    commit: str
    folder: str = ""


class HubResolver:
    """Resolves the listed names. `token` is shown to the hub; None shows nothing, whatever the environment holds."""

    def __init__(
        self,
        pins: Iterable[Pin],
        intake: Intake,
        *,
        base_model_digest: str,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        """`endpoint` is the hub's URL; None is what huggingface_hub takes. Raises InvalidRequest without that."""
        try:
            import huggingface_hub
        except ImportError as error:
            raise _invalid("expected the package huggingface_hub, found none: install loraplex[hub]") from error
        self._hub: Any = huggingface_hub
        self._pins = {pin.name: pin for pin in pins}
        self._intake = intake
        self._base_model_digest = base_model_digest
        self._token = token
        self._endpoint = endpoint
        self._versions: dict[str, Version] = {}
        self._bringing: Flights[Version] = Flights()

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:  # noqa: ARG002 -- no splits here
        """As Resolver.resolve; the first time it downloads, since only the bytes say what the digest is."""
        for name, version in self._versions.items():
            if reference.digest == version.digest or names(reference, name):
                return version
        pin = self._pins.get(reference.name or "")
        if pin is None or not names(reference, pin.name):
            raise AdapterNotFound(f"no adapter {reference} among those of the hub: {', '.join(self._pins)}")
        return await self._bringing.share(pin.name, lambda: self._bring(pin))

    async def fetch(self, version: Version) -> Path:
        """As Resolver.fetch."""
        pin = self._pins[version.adapter]
        return await self._intake.bring_again(version, lambda scratch: self._download(pin, scratch))

    def forget(self, version: Version) -> None:
        """As Resolver.forget."""
        self._intake.forget(version)

    def known(self) -> Iterable[KnownVersion]:
        """As Resolver.known: what was downloaded; the digests of the others are not known yet."""
        return [KnownVersion(name, version) for name, version in self._versions.items()]

    async def _bring(self, pin: Pin) -> Version:
        def make(manifest: Manifest) -> Version:
            return Version(pin.name, 0, manifest.digest, self._base_model_digest, manifest)

        version = await self._intake.bring(lambda scratch: self._download(pin, scratch), make)
        self._versions[pin.name] = version
        return version

    def _download(self, pin: Pin, scratch: Path) -> Path:
        """Blocks. Raises SourceUnavailable, and AdapterLoadFailed when the commit has no such file."""
        errors = self._hub.errors
        for file in ADAPTER_FILES:
            try:
                self._hub.hf_hub_download(
                    pin.repository,
                    f"{pin.folder}/{file}" if pin.folder else file,
                    revision=pin.commit,
                    local_dir=scratch,
                    token=self._token or False,
                    endpoint=self._endpoint,
                )
            except (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
                # A file that may be absent. LocalEntryNotFoundError, a child of this one, means that nobody answered.
                is_absent = not isinstance(error, errors.LocalEntryNotFoundError)
                if is_absent and file not in NEEDED_FILES:
                    continue
                if is_absent:
                    raise AdapterLoadFailed(f"{pin.repository}@{pin.commit}: {file}: {_first_line(error)}") from error
                raise _unavailable(pin, error) from error
            except Exception as error:  # of the HTTP library, whichever that is
                raise _unavailable(pin, error) from error
        return scratch / pin.folder


def parse_pins(items: Iterable[str]) -> list[Pin]:
    """Reads NAME=OWNER/REPOSITORY@COMMIT[/FOLDER]. Raises InvalidRequest."""
    found: list[Pin] = []
    for item in items:
        name, _, rest = item.partition("=")
        match = _PIN.fullmatch(rest)
        if match is None or any(part in (".", "..") for part in rest.split("/")):
            raise _invalid(
                f"expected NAME=OWNER/REPOSITORY@COMMIT with the commit's 40 hex digits, which no branch and no tag "
                f"can replace; found {item!r}"
            )
        found.append(Pin(check_name(name), match["repo"], match["commit"], match["folder"] or ""))
    if len({pin.name for pin in found}) < len(found):
        raise _invalid("expected each name once")
    return found


def _unavailable(pin: Pin, error: Exception) -> SourceUnavailable:
    return SourceUnavailable(f"{pin.repository}: {type(error).__name__}: {_first_line(error)}", retry_after_s=5.0)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(f"hub: {message}", field="hub")
