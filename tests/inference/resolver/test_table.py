"""The alias table: what is desired, what is served, and what survives the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter.manifest import Manifest, ManifestFile
from inference.resolver import Version
from inference.resolver.table import Key, Table, save

PRODUCTION = Key("sql", "production")


def make_version(number: int, adapter: str = "sql") -> Version:
    file = ManifestFile("adapter_model.safetensors", 10 + number, "sha256:" + f"{number:064x}")
    manifest = Manifest((file,))
    return Version(adapter, number, manifest.digest, "sha256:" + "b" * 64, manifest, rank=8)


def test_an_alias_never_served_falls_to_what_is_desired() -> None:
    table = Table()
    assert table.current(PRODUCTION) is None
    table.desired[PRODUCTION] = make_version(1)
    assert table.current(PRODUCTION) == make_version(1)


def test_a_served_alias_keeps_its_version_while_another_is_desired() -> None:
    table = Table(desired={PRODUCTION: make_version(2)}, serving={PRODUCTION: make_version(1)})
    assert table.current(PRODUCTION) == make_version(1)
    assert table.pending() == [PRODUCTION]


def test_a_failed_version_is_not_pending_any_more() -> None:
    version = make_version(2)
    table = Table(desired={PRODUCTION: version}, serving={PRODUCTION: make_version(1)})
    table.failures[version.digest] = "refused"
    assert table.pending() == []


def test_a_saved_table_comes_back_whole(tmp_path: Path) -> None:
    table = Table(
        store_id="s",
        revision=7,
        desired={PRODUCTION: make_version(2)},
        serving={PRODUCTION: make_version(1)},
        versions={("sql", 3): make_version(3)},
        retired={("sql", 1)},
    )
    save(tmp_path / "state" / "table.json", table.to_json())
    assert Table.load(tmp_path / "state" / "table.json") == table


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1, "versions": [{}]}'])
def test_a_file_that_cannot_be_read_is_an_empty_table(tmp_path: Path, content: str) -> None:
    (tmp_path / "table.json").write_text(content)
    assert Table.load(tmp_path / "table.json") == Table()


def test_a_saved_manifest_that_was_edited_is_not_believed(tmp_path: Path) -> None:
    save(tmp_path / "table.json", Table(serving={PRODUCTION: make_version(1)}).to_json())
    text = (tmp_path / "table.json").read_text()
    (tmp_path / "table.json").write_text(text.replace(f"{1:064x}", f"{2:064x}"))
    assert Table.load(tmp_path / "table.json") == Table()


def test_a_snapshot_drops_aliases_that_are_gone_and_says_which_memory_is_free() -> None:
    canary = Key("sql", "canary")
    table = Table(serving={PRODUCTION: make_version(1), canary: make_version(2)}, store_id="s")
    gone = table.replace({PRODUCTION: make_version(1)}, set(), store_id="s", revision=9)
    assert gone == [make_version(2)]
    assert set(table.serving) == {PRODUCTION}
    assert table.revision == 9
