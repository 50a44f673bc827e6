"""The committed stubs are what the protos say, and the contract keeps its own rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def test_the_stubs_are_fresh(tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto")]
    command += [f"--plugin=protoc-gen-mypy_grpc={BIN / 'protoc-gen-mypy_grpc'}"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, f"--mypy_grpc_out=quiet:{tmp_path}", *protos], check=True)
    made, kept = _python_files(tmp_path), _python_files(ROOT / "proto")
    assert made.keys() == kept.keys(), "run `make proto`"
    assert [name for name, text in made.items() if text != kept[name]] == [], "run `make proto`"


def _python_files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.suffix in (".py", ".pyi"))
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def test_every_rpc_says_with_which_statuses_it_ends() -> None:
    codes = ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAVAILABLE", "DATA_LOSS", "ABORTED")
    silent = []
    for path in (ROOT / "proto").rglob("*_service.proto"):
        comment: list[str] = []
        service: list[str] = []
        for line in path.read_text().splitlines():
            text = line.strip()
            if text.startswith("//"):
                comment.append(text)
                continue
            if text.startswith("service "):
                service = comment
            if text.startswith("rpc ") and not any(code in " ".join(comment + service) for code in codes):
                silent.append(text)
            comment = []
    assert silent == []
