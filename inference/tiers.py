"""Where an adapter's weights are: source ──fetch──► disk ──read, check, convert──► host ──one copy──► arena."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from inference.errors import InvalidRequest

PREFETCH_LABEL = "loraplex.prefetch"


class Tier(enum.Enum):
    """A place nearer to the kernels than the source, or one that a version should be brought to."""

    DISK = "disk"
    """Verified files in the disk cache."""
    HOST = "host"
    """Converted weights in the host cache."""
    ARENA = "arena"
    """The memory that the kernels read."""


def labelled_tier(labels: Mapping[str, str]) -> Tier | None:
    """The tier that a version's publisher wants it in before anybody asks; None for no wish.

    Raises InvalidRequest for a word that is no tier.
    """
    word = labels.get(PREFETCH_LABEL)
    if word is None:
        return None
    try:
        return Tier(word)
    except ValueError:
        known = ", ".join(tier.value for tier in Tier)
        raise InvalidRequest(f"{PREFETCH_LABEL}: expected one of {known}, found {word!r}", field="labels") from None
