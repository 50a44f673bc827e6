"""The README's first command does what the README says."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_S = 240.0


async def test_the_demo_promotes_under_load_and_fails_nothing(base_model_dir: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "examples.demo",
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    text = out.decode()
    assert process.returncode == 0, text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    table = {row[0].split()[0]: int(row[1]) for row in rows if len(row) == 3 and row[1].isdecimal()}
    assert table["failed"] == 0
    assert table["style:1"] > 0
    assert table["style:2"] > 0
