"""How a command line ends: the exit codes are here, and errors as lines for people. It knows error codes, no command.

Errors go to stderr: one `error:` line, one line per reason, and a `hint:` where there is something to do about it.
"""

from __future__ import annotations

import os
import sys

import click

from rpc.errors import DomainError

# They do not change: scripts depend on them.
EXIT_CODES = {
    0: "done",
    1: "something unexpected",
    2: "a wrong command line, setting or argument",
    3: "not found",
    4: "refused: a conflict, a precondition, an artifact that cannot be served",
    5: "the registry cannot be reached, or did not answer in time",
    6: "not allowed: no token, a wrong one, or one without the right",
    7: "--wait: a worker failed, or time was up",
    8: "verify, db check: damage was found",
    130: "interrupted",
}
_EXIT_CODES = {
    "INVALID_ARGUMENT": 2,
    "OUT_OF_RANGE": 2,
    "NOT_FOUND": 3,
    "ALREADY_EXISTS": 4,
    "ABORTED": 4,
    "FAILED_PRECONDITION": 4,
    "RESOURCE_EXHAUSTED": 4,
    "UNAVAILABLE": 5,
    "DEADLINE_EXCEEDED": 5,
    "UNAUTHENTICATED": 6,
    "PERMISSION_DENIED": 6,
}
_EXIT_CODES_BY_REASON = {"FLEET_NOT_CONVERGED": 7, "BASE_MODEL_REFUSED": 4, "VERSION_DAMAGED": 8, "DATABASE_FAULTY": 8}

_HINTS = {
    "ADAPTER_NOT_FOUND": "`registry list` shows the adapters there are",
    "ALIAS_MOVED": "somebody else promoted in the meantime; `registry show NAME` says where it points now",
    "ALIAS_NOT_FOUND": "`registry promote NAME VERSION --alias ALIAS` makes an alias",
    "BACKUP_FAILED": "nothing was changed; what Postgres said is above",
    "BASE_MODEL_EXISTS": "a base model never changes; add this one under another name",
    "BASE_MODEL_NOT_FOUND": "`registry base add NAME PATH` adds one; `registry base list` shows those there are",
    "BLOB_CORRUPTED": "`registry verify NAME:VERSION` says what is damaged",
    "BLOB_TOO_LARGE": "LORAPLEX_REGISTRY_MAX_BLOB_BYTES of `registry serve` is the limit",
    "DATABASE_IN_USE": "restore into an empty database, or give --replace, and what is there is lost",
    "DATA_DIR_IN_USE": "end the registry that runs there; one with a server of its own is looked after by DATABASE_URL",
    "FLEET_NOT_CONVERGED": "the alias has moved; these workers keep what they served. `registry status` says more",
    "LINEAGE_CYCLE": "`registry lineage` shows what its parents were made from",
    "NO_EARLIER_TARGET": "`registry history NAME` shows where it pointed; `registry promote` moves it anywhere",
    "PERMISSION_DENIED": "ask whoever runs the registry for a token with this right",
    "REQUEST_ID_REUSED": "run the command again; each run takes an id of its own",
    "SCHEMA_UNKNOWN": "use the release that migrated this database, or a newer one",
    "NOT_IMPLEMENTED": "is that a registry, of this release? --server or LORAPLEX_REGISTRY names another",
    "SECRET_NOT_KEPT": "`registry token revoke ID` ends the token whose secret was lost",
    "SIGNATURE_REQUIRED": "`registry sign NAME:VERSION` signs it; `registry policy NAME` shows the keys",
    "STORAGE_FULL": "make room on the registry's disk",
    "STORE_UNAVAILABLE": "is it running? `registry serve` starts one; --server or LORAPLEX_REGISTRY names another",
    "TOKEN_NOT_FOUND": "`registry token list` shows their ids",
    "UNAUTHENTICATED": "give a token with --token or LORAPLEX_REGISTRY_TOKEN",
    "VERSION_DAMAGED": "register the same files again: what is damaged is uploaded anew",
    "VERSION_IN_USE": "promote another version first, or retire it with --force",
    "VERSION_NOT_FOUND": "`registry show NAME` lists its versions",
    "VERSION_NOT_RETIRED": "`registry show NAME` lists the state of its versions",
    "VERSION_RETIRED": "`registry unretire NAME VERSION` brings it back",
    "WRONG_BASE_MODEL": "an adapter keeps its base model; register this one under another name",
}


def describe() -> str:
    """The exit codes, one a line."""
    return "\n".join(f"  {code:<3}  {meaning}" for code, meaning in EXIT_CODES.items())


def run(command: click.Command, arguments: list[str], *, name: str) -> int:
    """Runs one command line and returns its exit code; never raises for what a user can cause."""
    try:
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        hint = f"`{error.ctx.command_path} --help` explains it" if error.ctx else ""
        # Click lists the choices of an option over several lines.
        code = _fail(" ".join(error.format_message().split()), hint=hint, code=2)
    except click.ClickException as error:
        code = _fail(error.format_message(), code=2)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except DomainError as error:
        code = _fail_with(error)
    except BrokenPipeError:
        # Whoever read the output has enough; the interpreter must not complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", code=1)
    except Exception as error:
        if os.environ.get("LORAPLEX_DEBUG"):
            raise
        code = _fail(f"unexpected {type(error).__name__}: {error}", hint="LORAPLEX_DEBUG=1 shows where", code=1)
    return code if isinstance(code, int) else 0


def _fail_with(error: DomainError) -> int:
    message, reasons = str(error), error.reasons
    if len(reasons) > 1 and reasons[0][:40] in message:
        # The message quotes the first of the reasons, all of which are about to be listed.
        message = message[: message.index(reasons[0][:40])].rstrip(": ") or message
    reasons = tuple(reason for reason in reasons if reason not in message)
    code = _EXIT_CODES_BY_REASON.get(error.reason) or _EXIT_CODES.get(error.code, 1)
    return _fail(message, reasons=reasons, hint=_HINTS.get(error.reason, ""), code=code)


def _fail(message: str, *, code: int, reasons: tuple[str, ...] = (), hint: str = "") -> int:
    lines = [f"error: {message}", *(f"  - {reason}" for reason in reasons), *([f"hint: {hint}"] if hint else [])]
    for line in lines:
        # Texts of strangers must not steer the terminal.
        safe = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
        click.echo(safe, err=True)
    return code
