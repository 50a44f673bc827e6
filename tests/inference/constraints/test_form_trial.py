"""A form that is more than a process can bear takes only the trial's process along."""

from __future__ import annotations

import asyncio
import json

import llguidance
import pytest

from inference.constraints.form_trial import END, FormTrial, _Bytes
from inference.constraints.forms import ANY_JSON_OBJECT, Form, FormKind, read
from inference.errors import GuideRefused

# Whether some text has all of forty patterns is asked before any limit is looked at: 2 ** 40 of something.
ENDLESS = Form(
    FormKind.JSON_SCHEMA,
    json.dumps({"allOf": [{"type": "string", "pattern": f"^.*a{{{count}}}.*$"} for count in range(1, 41)]}),
)
GOOD = [ANY_JSON_OBJECT, Form(FormKind.REGEX, "a+"), Form.choices(["yes", "no"])]
BAD = [
    Form(FormKind.JSON_SCHEMA, "{"),
    Form(FormKind.JSON_SCHEMA, '{"not": {}}'),
    Form(FormKind.REGEX, "("),
    Form(FormKind.REGEX, r"[^\s\S]"),
    Form(FormKind.GRAMMAR, "start: x"),
]


@pytest.fixture
async def trial():
    trial = FormTrial(limit_s=1.0)
    yield trial
    await trial.close()


async def test_a_form_passes_or_is_refused_as_reading_it_says(trial):
    tokenizer = llguidance.LLTokenizer(_Bytes(), eos_token=[END])
    for form in GOOD:
        read(form, tokenizer)
        await trial.check(form)
    for form in BAD:
        with pytest.raises(GuideRefused) as read_here:
            read(form, tokenizer)
        with pytest.raises(GuideRefused) as tried:
            await trial.check(form)
        assert str(tried.value) == str(read_here.value)
        assert tried.value.field == f"guide.{form.kind.value}"


async def test_a_form_that_takes_too_long_is_refused_and_the_next_ones_are_read(trial):
    waiting = [asyncio.create_task(trial.check(form)) for form in (GOOD[0], ENDLESS, GOOD[1])]
    with pytest.raises(GuideRefused, match="read in 1 s, found one that takes more") as refused:
        await waiting[1]
    assert refused.value.field == "guide.json_schema"
    await waiting[0]
    await waiting[2]
    await trial.check(GOOD[2])


async def test_a_call_that_is_cancelled_in_the_middle_disturbs_nobody(trial):
    await trial.check(GOOD[0])
    leaving = asyncio.create_task(trial.check(ENDLESS))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await trial.check(GOOD[1])
    with pytest.raises(GuideRefused, match="unclosed"):
        await trial.check(BAD[2])


async def test_closing_ends_the_process_and_can_be_done_twice(trial):
    await trial.check(GOOD[0])
    process = trial._process
    await trial.close()
    await trial.close()
    assert process.returncode is not None
