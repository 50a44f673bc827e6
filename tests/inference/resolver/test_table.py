"""The alias table: what is desired, what is served, and what survives the process."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest

from adapter.manifest import Manifest, ManifestFile
from adapter.splits import choose_side
from inference.resolver import Version
from inference.resolver import table as table_module
from inference.resolver.table import Key, Side, Split, Table, save

PRODUCTION = Key("sql", "production")


def make_version(number: int, adapter: str = "sql") -> Version:
    file = ManifestFile("adapter_model.safetensors", 10 + number, "sha256:" + f"{number:064x}")
    manifest = Manifest((file,))
    return Version(adapter, number, manifest.digest, "sha256:" + "b" * 64, manifest, rank=8)


def whole(number: int) -> Split:
    """An alias that points at one version."""
    return Split((Side(make_version(number)),))


def split(*shares: tuple[int, int]) -> Split:
    """An alias that points at several, as (number, weight)."""
    return Split(tuple(Side(make_version(number), weight) for number, weight in shares))


def test_an_alias_never_served_falls_to_what_is_desired() -> None:
    table = Table()
    assert table.current(PRODUCTION) is None
    table.desire(PRODUCTION, whole(1))
    assert table.current(PRODUCTION) == whole(1)


def test_a_served_alias_keeps_its_version_while_another_is_desired() -> None:
    table = Table(desired={PRODUCTION: whole(2)}, serving={PRODUCTION: whole(1)})
    assert table.current(PRODUCTION) == whole(1)
    assert table.pending() == [PRODUCTION]


def test_a_failed_version_is_not_pending_any_more() -> None:
    table = Table(desired={PRODUCTION: whole(2)}, serving={PRODUCTION: whole(1)})
    table.failures[make_version(2).digest] = "refused"
    assert table.pending() == []
    table.desire(PRODUCTION, whole(2))  # promoted again
    assert table.pending() == [PRODUCTION]


def test_a_split_is_pending_until_all_its_versions_are_ready_and_not_when_one_failed() -> None:
    table = Table(serving={PRODUCTION: whole(1)})
    table.desire(PRODUCTION, split((1, 9000), (2, 1000)))
    assert table.pending() == [PRODUCTION]
    assert table.current(PRODUCTION) == whole(1)
    table.failures[make_version(2).digest] = "refused"
    assert table.pending() == []


def test_shares_of_the_same_versions_hold_at_once() -> None:
    table = Table(serving={PRODUCTION: split((1, 9000), (2, 1000))})
    table.desire(PRODUCTION, split((2, 6000), (1, 4000)))
    assert table.serving[PRODUCTION] == split((2, 6000), (1, 4000))
    table.replace({PRODUCTION: split((1, 7000), (2, 3000))}, set(), store_id="s", revision=9)
    assert table.serving[PRODUCTION] == split((1, 7000), (2, 3000))
    assert table.pending() == []


def test_a_split_chooses_by_the_key_as_the_registry_does() -> None:
    halves = split((1, 5000), (2, 5000))
    for number in range(50):
        key = f"request-{number}"
        expected = choose_side("sql", "production", [(1, 5000), (2, 5000)], key)
        assert halves.choose(PRODUCTION, key) == make_version(expected)


def test_every_version_of_a_split_is_wanted_and_names_the_alias() -> None:
    table = Table(serving={PRODUCTION: split((1, 9000), (2, 1000))})
    assert all(table.is_wanted(make_version(number).digest) for number in (1, 2))
    assert table.aliases_of(make_version(2)) == ["production"]
    assert table.find_digest(make_version(2).digest) == make_version(2)


def test_a_saved_table_comes_back_whole(tmp_path: Path) -> None:
    table = Table(
        store_id="s",
        revision=7,
        desired={PRODUCTION: split((2, 9000), (1, 1000))},
        serving={PRODUCTION: whole(1)},
        versions=OrderedDict({("sql", number): make_version(number) for number in (5, 3)}),
        retired={("sql", 1)},
    )
    save(tmp_path / "state" / "table.json", table.to_json())
    assert Table.load(tmp_path / "state" / "table.json") == table


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 2, "versions": [{}]}'])
def test_a_file_that_cannot_be_read_is_an_empty_table(tmp_path: Path, content: str) -> None:
    (tmp_path / "table.json").write_text(content)
    assert Table.load(tmp_path / "table.json") == Table()


def test_a_saved_manifest_that_was_edited_is_not_believed(tmp_path: Path) -> None:
    save(tmp_path / "table.json", Table(serving={PRODUCTION: whole(1)}).to_json())
    text = (tmp_path / "table.json").read_text()
    (tmp_path / "table.json").write_text(text.replace(f"{1:064x}", f"{2:064x}"))
    assert Table.load(tmp_path / "table.json") == Table()


def test_exact_versions_beyond_the_limit_are_forgotten_least_recently_asked_for_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_module, "MAX_VERSIONS", 2)
    table = Table()
    for number in (1, 2):
        table.remember(make_version(number))
    assert table.find_version("sql", 1) == make_version(1)
    table.remember(make_version(3))
    assert list(table.versions) == [("sql", 1), ("sql", 3)]
    assert table.find_version("sql", 2) is None


def test_a_snapshot_drops_aliases_that_are_gone_and_says_which_memory_is_free() -> None:
    canary = Key("sql", "canary")
    table = Table(serving={PRODUCTION: whole(1), canary: split((2, 9999), (1, 1))}, store_id="s")
    gone = table.replace({PRODUCTION: whole(1)}, set(), store_id="s", revision=9)
    assert gone == [make_version(2)]
    assert set(table.serving) == {PRODUCTION}
    assert table.revision == 9
