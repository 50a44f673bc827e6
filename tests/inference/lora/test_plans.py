"""Plans that are remembered are those that would be made again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter.config import read_config
from adapter.errors import AdapterRefused
from adapter.header import read_header
from adapter.plan import MAX_RANK, plan
from inference.lora import plans
from inference.lora.plans import Plans
from inference.lora.weights import lay_out


@pytest.fixture
def make(sites, modules):
    return lambda: Plans(sites=sites, modules=modules, dtype=torch.float32, max_rank=MAX_RANK)


@pytest.fixture
def parses(monkeypatch):
    """How often a header was parsed."""
    parsed = []

    def counted(path):
        parsed.append(path)
        return read_header(path)

    monkeypatch.setattr(plans, "read_header", counted)
    return parsed


def write_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_fresh(planned, folder, sites, modules):
    """It is what a plan from the beginning is."""
    expected = plan(read_config(folder / "adapter_config.json"), planned.header, modules, max_rank=MAX_RANK)
    assert planned.plan == expected
    layout = lay_out(expected, sites, torch.float32)
    for name in ("a_start", "ranks", "b_start", "scales", "kinds", "vector_start"):
        np.testing.assert_array_equal(getattr(planned.layout, name), getattr(layout, name))
    assert planned.layout.num_elements == layout.num_elements
    assert planned.layout.places == layout.places


def test_adapters_alike_are_planned_once(make, parses, write_adapter, sites, modules):
    remembered = make()
    folders = [write_adapter(name, modules, {"q": 4, "down": 2}, seed=seed) for seed, name in enumerate("abc")]
    write_config(folders[2], revision="of another training")
    for folder in folders:
        assert_fresh(remembered.of(folder), folder, sites, modules)
    assert len(parses) == 1


def test_another_configuration_or_other_tensors_are_another_plan(make, parses, write_adapter, sites, modules):
    remembered = make()
    first = write_adapter("a", modules, {"q": 4})
    scaled = write_adapter("b", modules, {"q": 4})
    write_config(scaled, lora_alpha=1)
    larger = write_adapter("c", modules, {"q": 5})
    for folder in (first, scaled, larger, first):
        assert_fresh(remembered.of(folder), folder, sites, modules)
    assert len(parses) == 4


def test_a_header_that_was_planned_does_not_vouch_for_a_shorter_file(make, write_adapter, modules):
    remembered, folder = make(), write_adapter("a", modules, {"q": 4})
    remembered.of(folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterRefused):
        remembered.of(folder)


def test_what_is_refused_is_refused_again(make, write_adapter, modules):
    remembered, folder = make(), write_adapter("a", modules, {"q": 4})
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[next(iter(tensors))]
    save_file(tensors, path)
    for _ in range(2):
        with pytest.raises(AdapterRefused, match="expected"):
            remembered.of(folder)


def test_the_least_recently_used_plan_is_forgotten(make, parses, monkeypatch, write_adapter, modules):
    monkeypatch.setattr(plans, "MAX_KEPT", 2)
    remembered = make()
    a, b, c = (write_adapter(name, modules, {"q": rank}) for rank, name in enumerate("abc", start=1))
    for folder in (a, b, a, c, a):
        remembered.of(folder)
    assert len(parses) == 3
    remembered.of(b)
    assert len(parses) == 4
