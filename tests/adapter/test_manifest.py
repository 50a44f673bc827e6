"""A manifest is canonical, its digest is its identity, and no path in it leaves the folder."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from adapter.errors import AdapterRefused, BaseModelRefused, InvalidManifest
from adapter.manifest import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Manifest,
    ManifestFile,
    digest_file,
    manifest_of_adapter,
    manifest_of_base_model,
)

ZERO = f"sha256:{'0' * 64}"


def test_the_digest_is_that_of_the_canonical_json() -> None:
    manifest = Manifest((ManifestFile("a", 1, ZERO), ManifestFile("b/é", 2, ZERO)))
    expected = '{"files":[{"path":"a","sha256":"%s","size":1},{"path":"b/é","sha256":"%s","size":2}]}' % (
        ("0" * 64,) * 2
    )
    assert manifest.canonical_json() == expected.encode()
    assert manifest.digest == f"sha256:{hashlib.sha256(expected.encode()).hexdigest()}"
    assert manifest.size_bytes == 3
    assert manifest.file("a") == ManifestFile("a", 1, ZERO)
    assert manifest.file("c") is None


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../a", "a/../b", "a/./b", "a//b", "a/", "..", "a\\b", "a\nb", "a\0b", "x" * 256, "\ud800"],
)
def test_a_path_that_could_leave_the_folder_is_refused(path: str) -> None:
    with pytest.raises(InvalidManifest, match="expected a relative path"):
        Manifest((ManifestFile(path, 1, ZERO),))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ((), "expected 1 to"),
        ((ManifestFile("b", 1, ZERO), ManifestFile("a", 1, ZERO)), "sorted"),
        ((ManifestFile("a", 1, ZERO), ManifestFile("a", 1, ZERO)), "each path once"),
        ((ManifestFile("a", 1, "sha256:0"),), "64 lower-case hex digits"),
        ((ManifestFile("a", 1, ZERO.upper()),), "64 lower-case hex digits"),
        ((ManifestFile("a", -1, ZERO),), "expected a size"),
    ],
)
def test_a_list_that_is_no_manifest_is_refused(files: tuple[ManifestFile, ...], why: str) -> None:
    with pytest.raises(InvalidManifest, match=why):
        Manifest(files)


def test_an_adapter_is_its_two_files(tmp_path: Path) -> None:
    shutil.copytree("examples/adapters/pirate", tmp_path / "pirate")
    seen: list[int] = []
    manifest = manifest_of_adapter(tmp_path / "pirate", on_bytes=seen.append)
    assert [file.path for file in manifest.files] == [CONFIG_FILE, WEIGHTS_FILE]
    assert manifest.files[1].digest == digest_file("examples/adapters/pirate/adapter_model.safetensors")
    assert sum(seen) == manifest.size_bytes
    (tmp_path / "pirate" / "README.md").write_text("beside the adapter")
    assert manifest_of_adapter(tmp_path / "pirate").digest == manifest.digest


def test_probes_and_the_files_of_a_tokenizer_are_part_of_the_adapter(tmp_path: Path) -> None:
    shutil.copytree("examples/adapters/pirate", tmp_path / "pirate")
    before = manifest_of_adapter(tmp_path / "pirate").digest
    names = ["chat_template.jinja", "probe.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        (tmp_path / "pirate" / name).write_text("{}")
    manifest = manifest_of_adapter(tmp_path / "pirate")
    assert [file.path for file in manifest.files] == sorted([CONFIG_FILE, WEIGHTS_FILE, *names])
    assert manifest.digest != before


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("{}")
    with pytest.raises(AdapterRefused, match=r"expected adapter_model\.safetensors, found none"):
        manifest_of_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterRefused, match=r"found adapter_model\.bin: a pickle"):
        manifest_of_adapter(tmp_path)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="expected a folder, found nothing"):
        manifest_of_adapter(tmp_path / "missing")
    with pytest.raises(BaseModelRefused, match="expected a folder, found nothing"):
        manifest_of_base_model(tmp_path / "missing")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CONFIG_FILE).write_text("{}")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / WEIGHTS_FILE).symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterRefused, match="found a link to"):
        manifest_of_adapter(folder)
