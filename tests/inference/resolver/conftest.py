"""Folders that look like adapters, and an intake to copy them by. What the files mean is no concern of resolvers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE
from inference.resolver.cache import FileCache
from inference.resolver.intake import Intake
from inference.resolver.origins import Origins

BASE_DIGEST = "sha256:" + "b" * 64


def write_files(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text("{}")
    (folder / WEIGHTS_FILE).write_bytes(weights)
    return folder


@pytest.fixture(name="write_files")
def write_files_fixture() -> Callable[..., Path]:
    """`write_files(folder, b"weights")`: the two files of an adapter."""
    return write_files


@pytest.fixture
def base() -> dict[str, str]:
    """The base model, as resolvers want to know it."""
    return {"base_model_name": "smol", "base_model_digest": BASE_DIGEST}


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    """An intake over an empty cache."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    origins = Origins()
    return Intake(FileCache(tmp_path / "cache", origins.read, capacity_bytes=2**30), origins, scratch)
