"""The file that says what the holders of client certificates may do."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.client_scopes import read_client_grants
from registry.grants import Grant
from registry.resources import Scope
from registry.settings import read_settings
from rpc.security import ConfigError


def test_a_line_gives_scopes_and_limits_to_a_subject(tmp_path: Path) -> None:
    file = tmp_path / "scopes"
    file.write_text(
        "# who may do what\n\nworker.example  read,watch,report\n"
        "ci.example  promote,register  adapters=sql,pirate  aliases=staging\n"
    )
    assert read_client_grants(file) == {
        "worker.example": Grant(frozenset({Scope.READ, Scope.WATCH, Scope.REPORT})),
        "ci.example": Grant(
            frozenset({Scope.PROMOTE, Scope.REGISTER}), frozenset({"sql", "pirate"}), frozenset({"staging"})
        ),
    }
    (tmp_path / "ca.pem").write_text("")
    settings = read_settings(
        {"LORAPLEX_REGISTRY_CLIENT_SCOPES": str(file), "LORAPLEX_REGISTRY_CLIENT_CA": str(tmp_path / "ca.pem")}
    )
    assert set(settings.client_grants) == {"worker.example", "ci.example"}


@pytest.mark.parametrize(
    "line", ["ci", "ci write", "ci read adapters=", "ci read alias=x", "ci read aliases=a aliases=b"]
)
def test_a_wrong_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "scopes"
    file.write_text(f"worker read\n{line}\n")
    with pytest.raises(ConfigError, match=r"line 2: expected `SUBJECT SCOPE"):
        read_client_grants(file)


def test_a_file_that_says_nothing_or_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nobody\n")
    with pytest.raises(ConfigError, match="found none"):
        read_client_grants(tmp_path / "empty")
    with pytest.raises(ConfigError, match="cannot read"):
        read_client_grants(tmp_path / "nothing")
