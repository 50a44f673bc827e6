"""How the command line ends: one line of error, an exit code, and a hint where one helps."""

from __future__ import annotations

import click
import pytest

from inference import cli
from inference.errors import AdapterLoadFailed, Draining, InferenceError
from rpc.errors import DomainError


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The exit code and the lines of a command that raises this."""

    def fail_with(error: Exception) -> tuple[int, list[str]]:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(cli, "cli", command)
        monkeypatch.setattr("sys.argv", ["inference"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err.splitlines()

    return fail_with


def status(code: str) -> DomainError:
    """A status of gRPC's own, as a client gets it."""
    error = InferenceError("no words")
    error.code = error.reason = code
    return error


def test_a_worker_that_cannot_be_reached_is_asked_about(fail_with) -> None:
    code, lines = fail_with(status("UNAVAILABLE"))
    assert (code, lines[0]) == (5, "error: no words")
    assert "is the worker up?" in lines[1]


def test_a_server_that_is_no_worker_is_asked_about(fail_with) -> None:
    code, lines = fail_with(status("UNIMPLEMENTED"))
    assert code == 2
    assert "is that a worker" in lines[1]


def test_a_worker_that_answers_that_it_ends_is_not_asked_for(fail_with) -> None:
    assert fail_with(Draining()) == (5, ["error: The worker is shutting down."])


def test_a_reason_that_the_message_quotes_is_said_once(fail_with) -> None:
    error = AdapterLoadFailed("the adapter is refused: one (and 1 more)", reasons=("one", "another"))
    assert fail_with(error) == (4, [f"error: {error}", "  - another"])
