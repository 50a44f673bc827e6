"""Which tokenizer a request is read and answered with: the base model's, or that of an adapter that brings its own.

Adapters whose files amount to the same share one tokenizer, and most share the base model's. A request has one
tokenizer, so adapters whose tokenizers differ cannot answer together.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from adapter.manifest import TOKENIZER_FILES, ManifestFile, digest_file
from inference.errors import AdapterLoadFailed, BaseModelRefused, InvalidRequest
from inference.resolver import Version
from inference.text.tokenizer import Tokenizer

# Kept in memory beside those in use; one takes up to some ten megabytes.
MAX_TOKENIZERS = 64

Files = tuple[ManifestFile, ...]


class Vocabularies:
    """The tokenizers of one base model's adapters. Used from one event loop; files are read on other threads."""

    def __init__(
        self, base: Tokenizer, folder: Path, fetch: Callable[[Version], Awaitable[Path]], *, limit: int = MAX_TOKENIZERS
    ) -> None:
        """`folder` is the base model's; `fetch` brings a version's files to this machine, as Resolver.fetch."""
        self.base = base
        self._folder = folder
        self._fetch = fetch
        self._limit = limit
        self._loaded: OrderedDict[Files, Tokenizer] = OrderedDict()  # the least recently used first
        self._turns: dict[Files, asyncio.Lock] = {}  # one reads, and who comes meanwhile has what it found

    async def of(self, versions: Sequence[Version]) -> Tokenizer | None:
        """The tokenizer that these adapters bring along, None if none does; one without goes with any.

        Raises InvalidRequest for adapters whose tokenizers differ, AdapterLoadFailed for one that cannot be read, and
        what fetching raises.
        """
        chosen: tuple[Version, Tokenizer] | None = None
        for version in versions:
            files = tuple(file for file in version.manifest.files if file.path in TOKENIZER_FILES)
            if not files:
                continue
            tokenizer = await self._tokenizer(version, files)
            if chosen is not None and tokenizer.identity != chosen[1].identity:
                raise InvalidRequest(
                    f"adapters: expected one tokenizer, found that of {version.name} beside another of "
                    f"{chosen[0].name}: their words or their chat templates differ",
                    field="adapters",
                )
            chosen = version, tokenizer
        return None if chosen is None else chosen[1]

    async def _tokenizer(self, version: Version, files: Files) -> Tokenizer:
        if files not in self._loaded:
            async with self._turns.setdefault(files, asyncio.Lock()):
                if files not in self._loaded:
                    self._loaded[files] = await self._read(version, files)
            self._turns.pop(files, None)
        found = self._loaded[files]
        self._loaded.move_to_end(files)
        if len(self._loaded) > self._limit:
            self._loaded.popitem(last=False)
        return found

    async def _read(self, version: Version, files: Files) -> Tokenizer:
        folder = await self._fetch(version)
        try:
            made = await asyncio.to_thread(_load, self._folder, folder, files)
        except BaseModelRefused as refused:
            raise AdapterLoadFailed(f"the tokenizer of {version.name} is refused: {refused}") from refused
        return next((one for one in (self.base, *self._loaded.values()) if one.identity == made.identity), made)


def _load(base: Path, folder: Path, files: Files) -> Tokenizer:
    for file in files:
        try:
            digest = digest_file(folder / file.path)
        except OSError as error:
            raise AdapterLoadFailed(f"{file.path}: cannot be read: {error.strerror or error}") from error
        if digest != file.digest:
            raise AdapterLoadFailed(f"{file.path}: expected {file.digest}, found {digest}")
    return Tokenizer.load(base, adapter=folder)
