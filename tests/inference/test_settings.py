"""Settings: flags over environment over defaults, and nothing swallowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.errors import InvalidRequest
from inference.settings import Settings, parse_bytes


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_default() -> None:
    settings = Settings.read(
        {"model": "/models/base", "max_batch": None, "listen": "127.0.0.1:1"},
        {"LORAPLEX_WORKER_MAX_BATCH": "3", "LORAPLEX_WORKER_LISTEN": "127.0.0.1:2"},
    )
    assert (settings.model, settings.max_batch, settings.listen) == (Path("/models/base"), 3, "127.0.0.1:1")
    assert settings.base_model_name == "base"
    assert settings.max_queue == Settings(model=Path()).max_queue


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MAX_BATCH", "many", "max_batch: expected a number, found 'many'"),
        ("MAX_BATCH_ADAPTERS", "-1", "max_batch_adapters: expected at least 0, found -1"),
        ("MAX_BATCH", "0", "max_batch: expected at least 1, found 0"),
        ("DISK_CACHE", "0", "disk_cache: expected at least 1, found 0"),
        ("MAX_LORAS", "5000", "max_loras: expected at most 4096, found 5000"),
        ("MAX_LORA_RANK", "70000", "max_lora_rank: expected at most"),
        ("MAX_CPU_LORAS", "-2", "max_cpu_loras: expected at least 0, found -2"),
        ("ADAPTER_MEMORY", "12 parsecs", "adapter_memory: expected a size such as 512MiB"),
        ("MAX_CONTEXT", "-1", "max_context: expected at least 0, found -1"),
        ("THREADS", "-1", "threads: expected at least 0, found -1"),
        ("DRAIN_S", "-1", "drain_s: expected at least 0, found -1"),
        ("DRAIN_S", "nan", "drain_s: expected at least 0, found nan"),
        ("DEVICE", "tpu", "device: expected auto, cpu or cuda, found tpu"),
        ("PREFIX_CACHE", "maybe", "prefix_cache: expected true or false, found 'maybe'"),
        ("DTYPE", "int4", "dtype: expected auto, float32 or bfloat16, found int4"),
        ("MAX_BACTH", "3", "unknown setting LORAPLEX_WORKER_MAX_BACTH"),
    ],
)
def test_a_bad_setting_is_refused_by_name(variable: str, value: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Settings.read({"model": "m"}, {f"LORAPLEX_WORKER_{variable}": value})


def test_a_flag_turned_off_wins_over_a_variable_that_turns_it_on() -> None:
    on = {"LORAPLEX_WORKER_PREFIX_CACHE": "True"}
    assert Settings.read({"model": "m", "prefix_cache": None}, on).prefix_cache
    assert not Settings.read({"model": "m", "prefix_cache": False}, on).prefix_cache
    assert not Settings.read({"model": "m"}, {"LORAPLEX_WORKER_PREFIX_CACHE": "0"}).prefix_cache


def test_no_model_says_how_to_give_one() -> None:
    with pytest.raises(InvalidRequest, match="--model or LORAPLEX_WORKER_MODEL"):
        Settings.read({}, {})


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("512MiB", 512 * 2**20), ("1.5 GiB", 3 * 2**29), ("2k", 2048), ("3GB", 3 * 2**30)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size
