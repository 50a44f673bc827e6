"""The life of a version: which state follows which. The one table that says so; the database holds the same rules.

    registered ──> validated <──> retired
        └────────> rejected ─────────┘
                    └─> validated, when it is registered again and passes

A version is checked before it is committed, so `registered` is where it is until then and never stored. A refused one
is kept only if the caller asked for that. Versions never leave, they retire.
"""

from __future__ import annotations

from registry.errors import StateRefused, VersionNotRetired
from registry.resources import AdapterVersion, VersionState

FOLLOWS: dict[VersionState, frozenset[VersionState]] = {
    VersionState.REGISTERED: frozenset({VersionState.VALIDATED, VersionState.REJECTED}),
    VersionState.VALIDATED: frozenset({VersionState.RETIRED}),
    VersionState.REJECTED: frozenset({VersionState.VALIDATED, VersionState.RETIRED}),
    # Not what was rejected: bringing that back would make it promotable without a check.
    VersionState.RETIRED: frozenset({VersionState.VALIDATED}),
}
RULES = {
    "ck_adapter_versions_state": "a state is one of the four",
    "ck_adapter_versions_rejected": "a rejected version has reasons, and a promotable one has none",
    "ck_adapter_versions_transition": "a state follows another as the table says",
}
"""The constraints that say the same in the database, whatever the code does."""


def check_transition(version: AdapterVersion, state: VersionState) -> None:
    """Whether a person may bring the version there. Raises VersionNotRetired and StateRefused."""
    name, is_rejected = f"{version.adapter}:{version.number}", bool(version.rejection_reasons)
    if state == VersionState.VALIDATED and version.state != VersionState.RETIRED:
        raise VersionNotRetired(f"{name} is {version.state.value}, not retired")
    if state not in FOLLOWS[version.state] or (state == VersionState.VALIDATED and is_rejected):
        raise StateRefused(f"{name} is {version.state.value} and cannot become {state.value}")
