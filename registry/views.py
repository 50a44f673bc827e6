"""How the command line shows what is more than one resource: histories, differences, rights and family trees.

Rows, lines and trees of text; `registry.printing` writes them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime

from registry.printing import age, short, size, targets
from registry.resources import (
    AdapterVersion,
    AliasChange,
    AuditEntry,
    Lineage,
    LineageDirection,
    LineageEdge,
    LineageKey,
    LineageKind,
    Token,
)


def change_row(change: AliasChange) -> tuple[str, ...]:
    """REVISION, WHEN, FROM, TO, BY, WHY."""
    before = targets(change.before) if change.before else "-"
    return (str(change.revision), age(change.time), before, targets(change.after), change.actor, change.message)


def audit_row(entry: AuditEntry) -> tuple[str, ...]:
    """REVISION, TIME, ACTOR, ACTION, RESOURCE, REQUEST, WHY."""
    time = f"{entry.time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    return (str(entry.revision), time, entry.actor, entry.action, entry.resource, entry.request_id, entry.message)


def token_row(token: Token) -> tuple[str, ...]:
    """ID, NAME, SCOPES, LIMITS, STATE, CREATED."""
    limits = [*(f"adapter {one}" for one in token.adapters), *(f"alias {one}" for one in token.aliases)]
    scopes = ", ".join(one.value for one in token.scopes)
    return (token.id, token.name, scopes, ", ".join(limits), token_state(token), age(token.create_time))


def token_state(token: Token) -> str:
    """In force, and until when, or why not."""
    if token.revoke_time is not None:
        return "revoked"
    if token.expire_time is None:
        return "in force"
    is_over = token.expire_time <= datetime.now(UTC)
    return f"{'expired' if is_over else 'in force until'} {token.expire_time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def differences(one: AdapterVersion, other: AdapterVersion) -> list[tuple[str, str, str]]:
    """(fact, of the one, of the other) for every fact in which two versions differ; none when they are the same bytes
    for the same base model."""
    pairs = zip(_facts(one), _facts(other), strict=True)
    facts = [(name, mine, theirs) for (name, mine), (_, theirs) in pairs if mine != theirs]
    mine, theirs = ({file.path: file for file in version.manifest.files} for version in (one, other))
    for path in sorted(mine.keys() | theirs.keys()):
        found = [
            f"{size(file.size_bytes)} {short(file.digest)}" if file else "-"
            for file in (mine.get(path), theirs.get(path))
        ]
        if found[0] != found[1]:
            facts.append((path, found[0], found[1]))
    return facts


def _facts(version: AdapterVersion) -> list[tuple[str, str]]:
    made_by = version.provenance
    return [
        ("digest", short(version.digest)),
        ("base model", f"{version.base_model} {short(version.base_model_digest)}"),
        ("state", version.state.value),
        ("rank", str(version.rank)),
        ("alpha", f"{version.alpha:g}"),
        ("targets", ", ".join(version.target_modules)),
        ("features", ", ".join(version.features)),
        ("parent", version.parent),
        ("git commit", made_by.git_commit),
        ("run", made_by.run_uri),
        ("datasets", ", ".join(made_by.dataset_uris)),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(made_by.labels.items()))),
        ("size", size(version.size_bytes)),
    ]


def tree_lines(lineage: Lineage, direction: LineageDirection) -> Iterator[str]:
    """The walk as a tree from its start. What comes a second time is drawn without what is behind it."""
    behind: dict[LineageKey, list[tuple[LineageEdge, LineageKey]]] = defaultdict(list)
    for edge in lineage.edges:
        near, far = (edge.child, edge.parent) if direction is LineageDirection.ANCESTORS else (edge.parent, edge.child)
        behind[near].append((edge, far))
    digests = {node.key: node.digest for node in lineage.nodes}
    drawn: set[LineageKey] = set()

    def label(key: LineageKey) -> str:
        kind = "base model " if key.kind is LineageKind.BASE_MODEL else ""
        return f"{kind}{key.id}  {short(digests[key]) if digests[key] else '(not registered)'}"

    def branches(key: LineageKey, indent: str) -> Iterator[str]:
        ends = behind[key]
        for count, (edge, far) in enumerate(ends, start=1):
            is_last = count == len(ends)
            words = edge.relation.replace("_", " ")
            again = " …" if far in drawn and behind[far] else ""
            yield f"{indent}{'└── ' if is_last else '├── '}{words}: {label(far)}{again}"
            if far not in drawn:
                drawn.add(far)
                yield from branches(far, indent + ("    " if is_last else "│   "))

    start = lineage.nodes[0].key
    drawn.add(start)
    yield label(start)
    yield from branches(start, "")
    if lineage.is_truncated:
        yield "there is more; --depth goes further"
