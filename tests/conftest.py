"""What tests of several packages share: the real base model, real adapters, and golden answers made with PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from examples.base_model import ensure_base_model

ROOT = Path(__file__).parents[1]

# Generated cases are the same in every run, and a busy machine fails none of them. To look for new ones:
# pytest --hypothesis-profile=default --hypothesis-seed=random
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def base_model_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, made once in .cache."""
    return ensure_base_model()


@pytest.fixture(scope="session")
def adapters_dir() -> Path:
    """Real PEFT adapters for it: pirate, sql, json, classify."""
    return ROOT / "examples" / "adapters"


@pytest.fixture(scope="session")
def goldens() -> dict[str, Any]:
    """Greedy answers of transformers + PEFT for the base model and those adapters."""
    return json.loads((ROOT / "tests" / "goldens" / "expected.json").read_text())
