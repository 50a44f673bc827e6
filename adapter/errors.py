"""What the format package refuses, and why.

DomainError
├── AdapterRefused       FAILED_PRECONDITION   an adapter that cannot be served as it is, with every reason
├── BaseModelRefused     INVALID_ARGUMENT      a model folder that cannot be described
├── InvalidManifest      INVALID_ARGUMENT      a list of files that is not a manifest
├── InvalidName          INVALID_ARGUMENT
└── InvalidReference     INVALID_ARGUMENT
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rpc.errors import DomainError

# Reasons travel in the trailers of a status, which peers limit to 8 KiB in all.
MAX_REASONS = 12
MAX_REASON_CHARS = 300


class FormatError(DomainError):
    """The files or names are not what the format asks for."""

    domain: ClassVar[str] = "loraplex.adapter"
    code, reason = "INVALID_ARGUMENT", "INVALID_FORMAT"


class _WithReasons(FormatError):
    """A refusal with findings; the message quotes the first one."""

    subject: ClassVar[str]

    def __init__(self, reasons: Sequence[str]) -> None:
        assert reasons, "a refusal without a reason helps nobody"
        short = [one if len(one) <= MAX_REASON_CHARS else one[: MAX_REASON_CHARS - 1] + "…" for one in reasons]
        if len(short) > MAX_REASONS:
            short = [*short[: MAX_REASONS - 1], f"and {len(reasons) - MAX_REASONS + 1} more"]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        super().__init__(f"{self.subject}: {short[0]}{more}", reasons=tuple(short))


class AdapterRefused(_WithReasons):
    """The adapter is refused."""

    code, reason = "FAILED_PRECONDITION", "ADAPTER_REFUSED"
    subject = "the adapter is refused"


class BaseModelRefused(_WithReasons):
    """The base model's folder is refused."""

    reason = "BASE_MODEL_REFUSED"
    subject = "the base model is refused"


class InvalidManifest(FormatError):
    """The list of files is not a manifest."""

    reason = "INVALID_MANIFEST"


class InvalidName(FormatError):
    """The name is not one."""

    reason = "INVALID_NAME"


class InvalidReference(FormatError):
    """The reference is not one."""

    reason = "INVALID_REFERENCE"
