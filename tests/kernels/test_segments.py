from __future__ import annotations

from itertools import pairwise

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


def test_rows_of_a_composed_batch_are_grouped_by_their_slots():
    """By the book: a group's rows are those of one set of slots, and entry m + i is its i-th row's in a segment."""
    kinds = [[(0, 1.0), (2, 0.5)], [(1, 2.0)], [], [(2, -1.0), (0, 0.25)], [(0, 1.0), (1, 1.0), (2, 1.0)]]
    uses = [kinds[n * n % 5] for n in range(60)] + [kinds[4]] * 20
    segments = group(uses)
    assert segments is not None
    groups = segments.groups
    assert groups is not None
    starts, members = groups.starts.tolist(), groups.member_starts.tolist()
    seen = []
    for g, (begin, end) in enumerate(pairwise(starts)):
        assert groups.group_of[begin:end].tolist() == [g] * (end - begin)
        entries = groups.first_entries[members[g] : members[g + 1]].tolist()
        for i, row in enumerate(groups.rows[begin:end].tolist()):
            assert [int(segments.rows[m + i]) for m in entries] == [row] * len(entries)
            slots = [int(segments.slots[segments.segment_of[m + i]]) for m in entries]
            weights = [float(segments.weights[m + i]) for m in entries]
            assert list(zip(slots, weights, strict=True)) == sorted(uses[row])
            seen.append(row)
    assert sorted(seen) == [row for row, pairs in enumerate(uses) if pairs]
    assert len(starts) - 1 == 3, "one for each set of slots"


def test_a_composed_batch_whose_rows_share_nothing_has_no_groups():
    segments = group([[(n, 1.0), (n + 1, 1.0)] for n in range(9)])
    assert segments is not None
    assert segments.groups is None


def test_a_negative_slot_is_refused():
    with pytest.raises(ValueError, match="expected slots >= 0, found -1"):
        group([[(-1, 1.0)]])
