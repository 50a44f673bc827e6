from __future__ import annotations

import pytest

from kernels import group


def test_entries_are_sorted_by_slot_and_keep_the_order_of_rows():
    segments = group([[(2, 1.0)], [(0, 0.5)], [], [(2, 0.25)]])
    assert segments is not None
    assert segments.rows.tolist() == [1, 0, 3]
    assert segments.weights.tolist() == [0.5, 1.0, 0.25]
    assert segments.starts.tolist() == [0, 1, 3]
    assert segments.slots.tolist() == [0, 2]
    assert segments.num_entries == 3


def test_a_batch_of_the_base_model_has_no_segments():
    assert group([[], []]) is None
    assert group([]) is None


def test_only_a_row_with_two_entries_makes_a_batch_composed():
    plain, composed = group([[(0, 1.0)], [(0, 1.0)]]), group([[(0, 1.0)], [(1, 1.0), (0, 1.0)]])
    assert plain is not None
    assert composed is not None
    assert not plain.is_composed
    assert composed.is_composed


def test_a_slot_named_twice_by_a_row_is_one_entry_with_both_weights():
    segments = group([[(1, 0.5), (0, 1.0), (1, 0.25)]])
    assert segments is not None
    assert segments.rows.tolist() == [0, 0]
    assert segments.slots.tolist() == [0, 1]
    assert segments.weights.tolist() == [1.0, 0.75]


def test_a_negative_slot_is_refused():
    with pytest.raises(ValueError, match="expected slots >= 0, found -1"):
        group([[(-1, 1.0)]])
