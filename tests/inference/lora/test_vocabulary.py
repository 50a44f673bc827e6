"""Own rows of an embedding and a head, against one row and one token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from inference.lora.vocabulary import RowsUse, SlotRows, replace_embedded, replace_logits
from inference.models.linear import PackedLinear, TiledLinear

WIDTH, BASE = 6, 20
# By what a slot knows: some tokens of the base model's, added ones too, all of them, a part, and none of its own.
OWN = {
    "some": (20, [0, 7, 19]),
    "added": (23, [3, 20, 21, 22]),
    "all": (20, range(20)),
    "all of more": (25, range(25)),
    "all of fewer": (11, range(11)),
    "fewer and none of its own": (11, []),
}


@pytest.fixture(params=OWN)
def use(request):
    """Own rows, used by the rows 1, 3 and 4 of a batch of 6."""
    vocab_size, known = OWN[request.param]
    token_ids = None if len(known) == vocab_size else torch.tensor(known, dtype=torch.int32)
    weight = torch.randn(len(known), WIDTH, generator=torch.Generator().manual_seed(len(known)))
    return RowsUse(SlotRows(0, vocab_size, token_ids, weight), np.array([1, 3, 4]))


def rows_of(use):
    """Each token's own row."""
    own = use.own
    known = range(own.vocab_size) if own.token_ids is None else own.token_ids.tolist()
    return dict(zip(known, own.weight, strict=True))


def test_a_row_looks_up_its_own_token_and_no_other(use):
    rows, last = rows_of(use), use.own.vocab_size - 1
    token_ids = torch.tensor([7, 7, 19, last, 0, last])
    y = torch.arange(6.0)[:, None].expand(6, WIDTH).clone()
    before = y.clone()
    replace_embedded(use, token_ids, y)
    for row, token_id in enumerate(token_ids.tolist()):
        expected = rows.get(token_id, before[row]) if row in (1, 3, 4) else before[row]
        assert torch.equal(y[row], expected)


def test_logits_are_own_products_where_there_are_rows_and_unknown_tokens_are_impossible(use):
    rows, generator = rows_of(use), torch.Generator().manual_seed(1)
    x = torch.randn(6, WIDTH, generator=generator)
    logits = torch.full((6, 27), -math.inf)
    logits[:, :BASE] = torch.randn(6, BASE, generator=generator)
    before = logits.clone()
    replace_logits(use, x, logits, PackedLinear.multiply)
    for row in range(6):
        for token_id in range(27):
            expected = before[row, token_id]
            if row in (1, 3, 4):
                if token_id in rows:
                    expected = rows[token_id] @ x[row]
                if token_id >= use.own.vocab_size:
                    expected = torch.tensor(-math.inf)
            torch.testing.assert_close(logits[row, token_id], expected)


def test_the_rows_whose_logits_are_wanted_are_numbered_anew(use):
    assert use.of_logits(np.array([0, 1, 4])).rows.tolist() == [1, 2]
    assert use.of_logits(np.array([0, 5])).rows.tolist() == []


@pytest.mark.parametrize("linear", [PackedLinear, TiledLinear])
def test_rows_that_nobody_uses_change_nothing(use, linear):
    nobody = use.of_logits(np.array([0, 5]))
    y, logits = torch.zeros(2, WIDTH), torch.zeros(2, 27)
    replace_embedded(nobody, torch.tensor([0, 3]), y)
    replace_logits(nobody, torch.ones(2, WIDTH), logits, linear.multiply)
    assert not y.any()
    assert not logits.any()
