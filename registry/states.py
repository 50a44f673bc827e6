"""The life of a version: which state follows which. The one table that says so; the database holds the same rules.

    registered ──> validated <──> retired
        └────────> rejected ─────────┘

A version is committed only after its check, so `registered` is passed within one transaction, and a refused one is an
error in place of a version; `rejected` is for registries that check later. Versions never leave, they retire.
"""

from __future__ import annotations

from registry.errors import StateRefused, VersionNotRetired
from registry.resources import AdapterVersion, VersionState

FOLLOWS: dict[VersionState, frozenset[VersionState]] = {
    VersionState.REGISTERED: frozenset({VersionState.VALIDATED, VersionState.REJECTED}),
    VersionState.VALIDATED: frozenset({VersionState.RETIRED}),
    VersionState.REJECTED: frozenset({VersionState.RETIRED}),
    # What was rejected stays so: bringing it back would make it promotable.
    VersionState.RETIRED: frozenset({VersionState.VALIDATED}),
}
RULES = {
    "ck_adapter_versions_state": "a state is one of the four",
    "ck_adapter_versions_rejected": "a rejected version has reasons, and a promotable one has none",
    "ck_adapter_versions_transition": "a state follows another as the table says",
}
"""The constraints that say the same in the database, whatever the code does."""


def check_transition(version: AdapterVersion, state: VersionState) -> None:
    """Raises VersionNotRetired, or StateRefused, unless the version may go there from where it is."""
    name, is_rejected = f"{version.adapter}:{version.number}", bool(version.rejection_reasons)
    if state == VersionState.VALIDATED and version.state != VersionState.RETIRED:
        raise VersionNotRetired(f"{name} is {version.state.value}, not retired")
    if state not in FOLLOWS[version.state] or (state == VersionState.VALIDATED and is_rejected):
        raise StateRefused(f"{name} is {version.state.value} and cannot become {state.value}")
