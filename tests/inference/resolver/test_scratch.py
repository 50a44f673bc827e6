"""Scratch folders: gone with their process, however it ends, and never taken from one that runs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from inference.resolver.scratch import open_scratch

HOLD = """
import sys
from pathlib import Path
from inference.resolver.scratch import open_scratch
with open_scratch(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("done")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_empty_at_first_and_gone_at_the_end(tmp_path):
    with open_scratch(tmp_path / "root") as folder:
        assert list(folder.iterdir()) == []
        (folder / "file").write_text("x")
    assert list((tmp_path / "root").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_has_is_not(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        half = Path(other.stdout.readline().strip()) / "half"
        with open_scratch(tmp_path) as mine:
            assert half.read_text() == "done"
            other.send_signal(signal.SIGKILL)
            other.wait()
            with open_scratch(tmp_path) as second:
                assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {mine.name, second.name}
    assert list(tmp_path.iterdir()) == []
