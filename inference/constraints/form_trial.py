"""Reads forms in a process of its own first: one that takes too much time or memory takes only that process along.

    worker ── {"kind", "text"} a line ──► python -m inference.constraints.form_trial
           ◄── {"refused": reason or null} a line; or nothing, when the form was more than the process could bear

The library counts most of its work and not all of it: whether an intersection of patterns is empty is asked before, and
takes twice as long with each pattern more.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence

import llguidance

from inference.constraints.forms import Form, FormKind, read
from inference.errors import GuideRefused

TRIAL_S = 2.0  # of a processor's time; a form at the limit of its size takes a third of it
TRIAL_BYTES = 4 * 2**30  # of addresses, which are many times the memory that is used
NICENESS = 5  # the engine goes first
END = 256


class FormTrial:
    """The process, started when the first form comes and again when one was its last."""

    def __init__(self, *, limit_s: float = TRIAL_S) -> None:
        """`limit_s` of a processor's time for each form."""
        self._limit_s = limit_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def check(self, form: Form) -> None:
        """Raises GuideRefused with what reading the form raises, or because it takes too much."""
        async with self._turn:
            process = self._process or await self._start()
            self._process = None  # until it has answered: a call that is cancelled leaves it in the middle
            try:
                answer = await _ask(process, form)
            except BaseException:
                await _end(process)
                raise
            if not answer:
                await process.wait()
                raise form.refused(
                    f"expected a form that is read in {self._limit_s:g} s, found one that takes more than that"
                )
            self._process = process
        if (refused := json.loads(answer)["refused"]) is not None:
            raise GuideRefused(refused, field=f"guide.{form.kind.value}")

    async def close(self) -> None:
        """Ends the process, at once."""
        async with self._turn:
            if self._process is not None:
                await _end(self._process)
                self._process = None

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "inference.constraints.form_trial",
            str(self._limit_s),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the worker's terminal is the worker's
        )


async def _ask(process: asyncio.subprocess.Process, form: Form) -> bytes:
    """The line that it answers, empty if it ended over the form."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"kind": form.kind.value, "text": form.text}).encode() + b"\n")
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return b""
    return await process.stdout.readline()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


class _Bytes:
    """The vocabulary of a trial: every byte, and an end. The names are llguidance's."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = END
    tokens: Sequence[bytes] = (*(bytes([byte]) for byte in range(END)), b"")
    special_token_ids: Sequence[int] = (END,)

    def __call__(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))


def main() -> None:
    """Reads the forms that come, one after the other, until none does; the system ends it at a form over a limit."""
    limit_s = float(sys.argv[1])
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (TRIAL_BYTES, TRIAL_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    wrapped: object = _Bytes()
    tokenizer = llguidance.LLTokenizer(wrapped, eos_token=[END])  # type: ignore[arg-type]  # takes any such object
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        refused: str | None = None
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        try:
            read(Form(FormKind(asked["kind"]), asked["text"]), tokenizer)
        except GuideRefused as error:
            refused = str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps({"refused": refused}).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
