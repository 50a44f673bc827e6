"""Names of base models, adapters and aliases, and references to versions. Knows their grammar and nothing they name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapter.errors import InvalidName, InvalidReference

DEFAULT_ALIAS = "production"
# The most that a version number may be: it travels as uint32 and is stored as a signed 32-bit integer.
MAX_NUMBER = 2**31 - 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FORMS = "NAME, NAME@ALIAS, NAME:NUMBER or sha256:<64 hex digits>"


def check_name(name: str, *, what: str = "name") -> str:
    """Returns the name. Raises InvalidName for other than 128 letters, digits, '.', '_' and '-', no sign first."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"{what}: expected letters, digits, '.', '_' and '-', starting with a letter or digit, at most 128 "
            f"characters; found {name[:140]!r}",
            field=what,
        )
    return name


def is_digest(text: str) -> bool:
    """Whether the text is `sha256:` and 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: a digest alone, or a name with either an alias or a number."""

    name: str | None = None
    alias: str | None = None
    number: int | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parses NAME (meaning NAME@production), NAME@ALIAS, NAME:NUMBER or a digest. Raises InvalidReference."""
        if text.startswith("sha256:"):
            if not is_digest(text):
                raise InvalidReference(f"expected sha256: and 64 lower-case hex digits; found {text[:140]!r}")
            return cls(digest=text)
        name, separator, rest = _split(text)
        try:
            check_name(name)
            if separator == "@":
                return cls(name=name, alias=check_name(rest, what="alias"))
        except InvalidName as error:
            raise InvalidReference(f"expected {_FORMS}; found {text[:140]!r}: {error}") from error
        if separator == ":":
            return cls(name=name, number=_parse_number(rest, text))
        return cls(name=name, alias=DEFAULT_ALIAS)

    def __str__(self) -> str:
        if self.digest is not None:
            return self.digest
        return f"{self.name}:{self.number}" if self.number is not None else f"{self.name}@{self.alias}"


def _split(text: str) -> tuple[str, str, str]:
    for separator in "@:":
        if separator in text:
            name, _, rest = text.partition(separator)
            return name, separator, rest
    return text, "", ""


def _parse_number(rest: str, text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,9}", rest) or int(rest) > MAX_NUMBER:
        raise InvalidReference(f"expected a version number from 1 to {MAX_NUMBER} after ':'; found {text[:140]!r}")
    return int(rest)
