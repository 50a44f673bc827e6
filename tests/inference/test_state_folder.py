"""One worker to a state folder."""

from __future__ import annotations

import os

import pytest

from inference.errors import InvalidRequest, StateFolderInUse
from inference.state_folder import WORKER_ID_FILE, own_state_folder, read_worker_id


def test_a_second_worker_is_kept_out_and_told_who_is_there(tmp_path) -> None:
    with own_state_folder(tmp_path), pytest.raises(StateFolderInUse, match=f"process {os.getpid()}"):
        own_state_folder(tmp_path).__enter__()


def test_the_next_worker_may_have_it_after_the_first(tmp_path) -> None:
    for _ in range(2):
        with own_state_folder(tmp_path / "made" / "on the way"):
            pass


def test_a_place_that_cannot_be_a_folder_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match=r"found .*: Not a directory"):
        own_state_folder(tmp_path / "file" / "state").__enter__()


def test_a_worker_keeps_its_id_and_gets_one_where_an_empty_file_was_left(tmp_path) -> None:
    (tmp_path / WORKER_ID_FILE).write_text("")
    first = read_worker_id(tmp_path)
    assert len(first) == 12
    assert read_worker_id(tmp_path) == first
    assert read_worker_id(tmp_path / "another") != first
