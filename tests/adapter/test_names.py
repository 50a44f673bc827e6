"""References are read one way only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.errors import InvalidName, InvalidReference
from adapter.names import Reference, check_name

DIGEST = f"sha256:{'ab' * 32}"


@pytest.mark.parametrize("name", ["sql", "A", "0", "a.b_c-d", "x" * 128])
def test_a_name_is_returned(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "_a", "a/b", "../a", "a b", "a@b", "a:b", "é", "a\n", "x" * 129, "a\0"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("sql", Reference(name="sql", alias="production")),
        ("sql@canary", Reference(name="sql", alias="canary")),
        ("sql:3", Reference(name="sql", number=3)),
        (DIGEST, Reference(digest=DIGEST)),
    ],
)
def test_a_reference_has_one_of_four_forms(text: str, reference: Reference) -> None:
    assert Reference.parse(text) == reference
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    ["", "@a", ":1", "sql@", "sql:", "sql:0", "sql:01", "sql:-1", "sql:x", "sql:3000000000", "sql@a@b", "sql:1:2",
     "sql@a:1", "sha256:ab", DIGEST.upper(), DIGEST + "0", "../sql", "sql:\uff11"],
)  # fmt: skip
def test_other_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(str(reference)) == reference
