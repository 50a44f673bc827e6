"""Other weights under running requests: what is computed from then on is theirs, and no cached block mixes the two."""

from __future__ import annotations

import random

import pytest

from inference.engine.request import Reloaded, Request, SamplingParams, SlotUse
from inference.engine.sequence import Chunk, Sampled

OLD, NEW = "sha256:old", "sha256:new"
NEW_SLOT = 9


class WeighedRunner:
    """A pretended model whose keys and values are (token, weights): a token is a function of all that it sees."""

    def __init__(self, runner, next_token):
        self._runner = runner
        self._next_token = next_token

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def run(self, chunks: list[Chunk]) -> list[Sampled]:
        runner = self._runner
        for chunk in chunks:
            if chunk.copy is not None:
                source, target = chunk.copy
                for offset in range(runner.block_size):
                    if (source, offset) in runner.cache:
                        runner.cache[target, offset] = runner.cache[source, offset]
        for chunk in chunks:
            for position, token in enumerate(chunk.token_ids, start=chunk.start):
                runner.cache[runner._place(chunk, position)] = (token, chunk.sequence.request.adapter_key)
        sampled = []
        for chunk in chunks:
            end = chunk.start + chunk.length
            seen = [runner.cache[runner._place(chunk, position)] for position in range(end)]
            assert [token for token, _ in seen] == chunk.sequence.tokens[:end]
            if chunk.samples:
                sampled.append(Sampled(self._next_token(chunk.sequence.request.adapter_key, seen)))
        runner.steps.append(chunks)
        return sampled


@pytest.fixture
def begin(simulate):
    """A simulation with the model above, which also keeps the Reloaded events: `begin(num_blocks=8)`."""

    def make(**options):
        simulation = simulate(**options)
        from_runner = simulation.runner
        simulation.runner = WeighedRunner(from_runner, _next_token)
        simulation.reloads = []
        take = simulation.take

        def take_all(events):
            simulation.reloads += [event for event in events if isinstance(event, Reloaded)]
            take([event for event in events if not isinstance(event, Reloaded)])

        simulation.take = take_all
        return simulation

    return make


def _next_token(adapter_key, seen):
    return random.Random(repr((adapter_key, seen))).randrange(50)


def twin(prompt, old_positions, outputs):
    """The answer when the first `old_positions` positions were computed by the old weights and all others by the new.

    `outputs` tokens in all; those whose last input position is an old one are the old weights' choice.
    """
    keys = (((OLD, 1.0),), ((NEW, 1.0),))
    seen, tokens = [], list(prompt)
    for position in range(len(prompt) + outputs - 1):
        key = keys[position >= old_positions]
        seen.append((tokens[position], key))
        if position >= len(prompt) - 1:
            tokens.append(_next_token(key, seen))
    return tokens[len(prompt) :]


def request(simulation, prompt, *, max_tokens=8, follows="rl", digest=OLD, answers=1, id=""):
    made = Request(
        id or f"q{len(simulation.outputs)}-{random.random()}",
        tuple(prompt),
        SamplingParams(max_tokens),
        uses=(SlotUse(1 if digest == OLD else NEW_SLOT, digest, follows=follows),),
        answers=answers,
    )
    simulation.scheduler.add(made)
    return made


def computed(simulation, made):
    """Positions of a request's first answer that are computed by now."""
    return simulation.scheduler._requests[made.id][0].computed


def reload(simulation):
    simulation.take(simulation.scheduler.reload("rl", slot=NEW_SLOT, digest=NEW))
    simulation.scheduler.check_integrity()


@pytest.mark.parametrize("steps", range(9))
def test_tokens_before_are_the_old_weights_and_those_after_the_new_ones_over_what_the_old_computed(begin, steps):
    prompt = list(range(10))
    simulation = begin(max_step_tokens=8)
    made = request(simulation, prompt)
    for _ in range(steps):
        simulation.step()
    old_positions = computed(simulation, made)
    answered = len(simulation.outputs.get(made.id, []))
    reload(simulation)
    simulation.run()
    assert simulation.outputs[made.id] == twin(prompt, old_positions, 8)
    (event,) = simulation.reloads
    assert (event.request_id, event.index, event.answer) == (made.id, answered, 0)
    assert event.uses == (SlotUse(NEW_SLOT, NEW, follows="rl"),)


def test_a_mixed_block_is_found_by_nobody_and_pure_ones_by_their_own(begin):
    prompt = list(range(10))
    simulation = begin()
    mixed = request(simulation, prompt, max_tokens=20)
    for _ in range(5):
        simulation.step()
    reload(simulation)
    simulation.run()
    continued = prompt + simulation.outputs[mixed.id]
    for digest, old_positions in ((OLD, 100), (NEW, 0), (OLD, 100), (NEW, 0)):
        for tokens in (prompt, continued):
            again = request(simulation, tokens, digest=digest, follows="")
            simulation.run()
            assert simulation.outputs[again.id] == twin(tokens, old_positions, 8)


def test_a_request_that_names_exactly_these_weights_keeps_them(begin):
    prompt = list(range(10))
    simulation = begin()
    exact, following = request(simulation, prompt, follows=""), request(simulation, prompt)
    for _ in range(3):
        simulation.step()
    old_positions = computed(simulation, following)
    assert old_positions > len(prompt)
    reload(simulation)
    simulation.run()
    assert simulation.outputs[exact.id] == twin(prompt, 100, 8)
    assert simulation.outputs[following.id] == twin(prompt, old_positions, 8)
    assert [event.request_id for event in simulation.reloads] == [following.id]


def test_a_waiting_request_is_computed_by_the_new_weights_alone(begin):
    prompt = list(range(10))
    simulation = begin(max_running=1)
    first, waiting = request(simulation, prompt), request(simulation, prompt)
    simulation.step()
    reload(simulation)
    simulation.run()
    assert simulation.outputs[first.id] == twin(prompt, 10, 8)
    assert simulation.outputs[waiting.id] == twin(prompt, 0, 8)
    assert {event.request_id: event.index for event in simulation.reloads} == {first.id: 1, waiting.id: 0}
    assert simulation.cached[waiting.id] == 0


def test_a_request_with_cached_blocks_of_which_nobody_was_told_begins_anew(begin):
    prompt = list(range(25))
    simulation = begin()
    request(simulation, prompt, max_tokens=1)
    simulation.run()
    late = request(simulation, prompt)
    assert simulation.scheduler.schedule(0.0), "a step that another request then fails"
    assert computed(simulation, late) == 24
    reload(simulation)
    simulation.run()
    assert simulation.outputs[late.id] == twin(prompt, 0, 8)
    assert simulation.cached[late.id] == 0


def test_a_preempted_request_is_computed_again_by_the_new_weights(begin):
    simulation = begin(num_blocks=8, block_size=4, max_context=32)
    prompts = [list(range(6)), list(range(20, 26))]
    made = [request(simulation, prompt, max_tokens=20) for prompt in prompts]
    while not simulation.scheduler.num_preemptions:
        simulation.step()
    answered = {one.id: len(simulation.outputs[one.id]) for one in made}
    older, newer = made
    old_positions = computed(simulation, older)
    assert computed(simulation, newer) == 0 < answered[newer.id]
    reload(simulation)
    simulation.run()
    assert simulation.outputs[older.id] == twin(prompts[0], old_positions, 20)
    # What the old weights chose stays said; what follows is as if they had been part of the prompt.
    said = simulation.outputs[newer.id][: answered[newer.id]]
    rest = simulation.outputs[newer.id][answered[newer.id] :]
    assert said == twin(prompts[1], 100, 20)[: len(said)]
    assert rest == twin(prompts[1] + said, 0, 20 - len(said))


def test_blocks_of_weights_that_nobody_means_any_more_are_free_and_those_of_others_are_kept(begin):
    simulation = begin()
    blocks = simulation.scheduler.blocks
    made = [request(simulation, [n] * 10, digest=digest, follows="") for n, digest in enumerate((OLD, NEW, OLD))]
    simulation.run()
    assert blocks.num_kept == 3 * 4
    running = request(simulation, [0] * 10, digest=OLD)
    simulation.step()
    blocks.forget(OLD)
    simulation.scheduler.check_integrity()
    assert blocks.num_kept == 4
    simulation.run()
    assert blocks.num_kept <= 4 + 2, "what it filled before was kept"
    assert simulation.outputs[running.id] == simulation.outputs[made[0].id]
    again = request(simulation, [0] * 10, digest=NEW, follows="")
    simulation.run()
    assert simulation.cached[again.id] == 0


def test_every_answer_of_a_request_is_told(begin):
    simulation = begin()
    request(simulation, list(range(10)), answers=3, id="n")
    reload(simulation)
    assert sorted(event.answer for event in simulation.reloads) == [0, 1, 2]


def test_a_step_may_have_no_place_for_both_weights_and_then_some_wait_with_what_they_have(begin):
    prompt = list(range(10))
    simulation = begin(max_adapters=1)
    exact = [request(simulation, [n, *prompt], follows="") for n in range(2)]
    moved = [request(simulation, [20 + n, *prompt]) for n in range(3)]
    for _ in range(4):
        simulation.step()
    old_positions = [computed(simulation, one) for one in moved]
    assert min(old_positions) > len(prompt)
    reload(simulation)
    assert simulation.scheduler.num_running == 2
    simulation.run()
    for n, one in enumerate(exact):
        assert simulation.outputs[one.id] == twin([n, *prompt], 100, 8)
    for n, one in enumerate(moved):
        assert simulation.outputs[one.id] == twin([20 + n, *prompt], old_positions[n], 8)


@pytest.mark.parametrize("seed", range(4))
def test_reloads_at_random_moments_among_random_requests_break_no_rule(begin, seed):
    rng = random.Random(seed)
    simulation = begin(num_blocks=14, max_step_tokens=9, max_context=40, max_running=5, max_adapters=1)
    made = []
    for _ in range(150):
        if rng.random() < 0.3:
            prompt = [rng.randrange(3)] * rng.randint(1, 20)
            digest, follows = rng.choice([(OLD, "rl"), (OLD, ""), (NEW, ""), (NEW, "rl")])
            made.append(request(simulation, prompt, digest=digest, follows=follows, max_tokens=rng.randint(1, 12)))
        if rng.random() < 0.1:
            slot, digest = rng.choice([(1, OLD), (NEW_SLOT, NEW)])
            simulation.take(simulation.scheduler.reload("rl", slot=slot, digest=digest))
            simulation.scheduler.check_integrity()
        if made and rng.random() < 0.1:
            name = rng.choice(made).id
            rng.choice([simulation.scheduler.pause, simulation.scheduler.resume])(name)
        if simulation.scheduler.has_work:
            simulation.step()
    for one in made:
        simulation.scheduler.resume(one.id)
    simulation.run()
    exact = [one for one in made if not one.uses[0].follows]
    for one in exact:
        old_positions = 100 if one.uses[0].digest == OLD else 0
        assert simulation.outputs[one.id] == twin(one.prompt_ids, old_positions, one.sampling.max_tokens)
    assert len(exact) > 5
