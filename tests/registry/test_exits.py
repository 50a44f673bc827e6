"""Every kind of failure has its exit code and one clean line; nothing shows a traceback."""

from __future__ import annotations

import errno
from typing import NoReturn

import click
import pytest

from adapter.errors import AdapterRefused as FilesRefused
from adapter.errors import BaseModelRefused, InvalidName
from registry import errors, exits
from registry.fleet import NotConverged


def fail_with(error: BaseException) -> int:
    @click.command()
    def command() -> NoReturn:
        raise error

    return exits.run(command, [], name="registry")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidName(), 2),
        (InvalidName(), 2),
        (errors.RevisionCompacted(), 2),
        (errors.AdapterNotFound(), 3),
        (errors.AliasMoved(), 4),
        (errors.BaseModelExists(), 4),
        (errors.VersionInUse(), 4),
        (errors.AdapterRefused(), 4),
        (errors.BlobTooLarge(), 4),
        (FilesRefused(["why"]), 4),
        (BaseModelRefused(["why"]), 4),
        (errors.StoreUnavailable(), 5),
        (errors.DeadlineExceeded(), 5),
        (errors.Unauthenticated(), 6),
        (errors.PermissionDenied(), 6),
        (NotConverged(), 7),
        (errors.BlobCorrupted(), 1),
        (errors.RegistryError(), 1),
        (RuntimeError("surprise"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/data"), 1),
        (click.UsageError("wrong"), 2),
        (click.FileError("/data"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_has_its_exit_code_and_one_line(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert code == 130 or err.startswith("error: ")


def test_reasons_follow_the_message_and_a_hint_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(errors.VersionInUse("sql:3 is in use", reasons=("by production", "by canary")))
    assert capsys.readouterr().err.splitlines() == [
        "error: sql:3 is in use",
        "  - by production",
        "  - by canary",
        "hint: promote another version first, or retire it with --force",
    ]


def test_a_reason_that_the_message_quotes_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(FilesRefused(["one thing"]))
    fail_with(FilesRefused(["one thing", "another"]))
    assert capsys.readouterr().err.splitlines() == [
        "error: the adapter is refused: one thing",
        "error: the adapter is refused",
        "  - one thing",
        "  - another",
    ]


def test_texts_of_strangers_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(errors.AdapterNotFound("\x1b[2Jsql\n", reasons=("\x07",)))
    assert "\x1b" not in (err := capsys.readouterr().err)
    assert "\x07" not in err
    assert len(err.splitlines()) == 3


def test_choices_are_told_in_the_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    @click.option("--scope", type=click.Choice(["read", "admin"]), required=True)
    def command(scope: str) -> None: ...

    assert exits.run(command, [], name="registry") == 2
    assert "Choose from: read, admin" in capsys.readouterr().err
