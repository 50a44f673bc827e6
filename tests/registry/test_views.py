"""What the command line draws, for shapes that a small registry does not have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from registry.resources import (
    Lineage,
    LineageDirection,
    LineageEdge,
    LineageKey,
    LineageKind,
    LineageNode,
    Scope,
    Token,
)
from registry.views import token_row, token_state, tree_lines

UP = LineageDirection.ANCESTORS


def lineage(start: str, *edges: tuple[str, str]) -> Lineage:
    keys = {name: LineageKey(LineageKind.BASE_MODEL, name) for name in (start, *(n for edge in edges for n in edge))}
    return Lineage(
        tuple(LineageNode(key, "sha256:" + 64 * "0") for key in keys.values()),
        tuple(LineageEdge(keys[child], keys[parent], "merge") for child, parent in edges),
    )


def names(found: Lineage) -> list[str]:
    return [
        line.replace("merge: base model ", "").replace("  sha256:000000000000", "") for line in tree_lines(found, UP)
    ]


def test_what_comes_a_second_time_is_drawn_without_what_is_behind_it() -> None:
    diamond = lineage("a", ("a", "b"), ("a", "c"), ("b", "d"), ("c", "b"), ("d", "e"))
    assert names(diamond)[1:] == ["├── b", "│   └── d", "│       └── e", "└── c", "    └── b …"]


def test_a_circle_ends_although_no_write_can_make_one() -> None:
    assert names(lineage("a", ("a", "b"), ("b", "a")))[1:] == ["└── b", "    └── a …"]


def test_a_tokens_state_says_until_when_or_why_not() -> None:
    now = datetime.now(UTC)
    token = Token("ci", (Scope.READ,), adapters=("sql",), aliases=("canary",), id="1")
    assert token_row(token)[:5] == ("1", "ci", "read", "adapter sql, alias canary", "in force")
    for expire_time, revoke_time, words in (
        (now + timedelta(hours=1), None, "in force until"),
        (now - timedelta(hours=1), None, "expired"),
        (now + timedelta(hours=1), now, "revoked"),
    ):
        ended = Token("ci", (Scope.READ,), expire_time=expire_time, revoke_time=revoke_time)
        assert token_state(ended).startswith(words)
