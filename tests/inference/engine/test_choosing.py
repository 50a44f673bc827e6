"""What logits mean to sequences; the slow twin is one plain pass over all tokens and a choice at its end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from inference.engine import scheduler
from inference.engine.kv_cache import KVCache
from inference.engine.request import Failed, Finished, PromptScored, Request, SamplingParams, Token
from inference.engine.runner import Runner
from inference.engine.scheduler import Limits, Scheduler
from inference.errors import AnswerStuck
from inference.lora.bank import Bank
from inference.models.llama import Llama
from inference.sampling import RowSampling, sample

CONTEXT = 64


class World:
    """A tiny model behind the real scheduler and runner, stepped by hand."""

    def __init__(self, model: Llama, *, num_blocks: int = 64, step_tokens: int = 16) -> None:
        self.model = model
        limits = Limits(CONTEXT, 8, 8, step_tokens, 100, 10_000)
        self.scheduler = Scheduler(limits, num_blocks=num_blocks, block_size=4)
        config = model.config
        cache = KVCache(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=4,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
        )
        self.runner = Runner(model, cache, Bank(model.sites, capacity_bytes=1 << 16, dtype=model.dtype))
        self._ids = itertools.count()
        self.tokens: dict[tuple[str, int], list[Token]] = {}
        self.scores: dict[str, PromptScored] = {}
        self.ends: dict[tuple[str, int], Finished] = {}
        self.failures: dict[str, Failed] = {}

    def submit(self, prompt_ids: Sequence[int], **fields: object) -> Request:
        params = {name: fields.pop(name) for name in list(fields) if name in SamplingParams.__dataclass_fields__}
        request = Request(f"r{next(self._ids)}", tuple(prompt_ids), SamplingParams(**params), **fields)
        self.scheduler.add(request)
        return request

    def run(self) -> None:
        while self.scheduler.has_work:
            chunks = self.scheduler.schedule(0.0)
            for event in self.scheduler.complete(chunks, self.runner.run(chunks), 0.0):
                match event:
                    case Token():
                        self.tokens.setdefault((event.request_id, event.answer), []).append(event)
                    case PromptScored():
                        assert event.request_id not in self.scores
                        self.scores[event.request_id] = event
                    case Finished():
                        self.ends[event.request_id, event.answer] = event
                    case Failed():
                        self.failures[event.request_id] = event

    def answer(self, request: Request, answer: int = 0) -> list[int]:
        return [token.token_id for token in self.tokens.get((request.id, answer), [])]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return Llama.load(tiny_model_dir("llama"), "float32")


class Only:
    """The constraint that the token after `n` others is one of turns[n]; stuck when they are used up."""

    def __init__(self, *turns: set[int]) -> None:
        self.turns = turns
        self.begun = 0

    def begin(self) -> Only:
        self.begun += 1
        return self

    def allowed(self, output_ids: Sequence[int]) -> torch.Tensor:
        if len(output_ids) >= len(self.turns):
            raise AnswerStuck(f"after {len(output_ids)}")
        return torch.isin(torch.arange(96), torch.tensor(sorted(self.turns[len(output_ids)])))


@pytest.mark.parametrize("step_tokens", [8, 13, 64])
@pytest.mark.parametrize("answers", [1, 3])
def test_scores_of_a_prompt_are_those_of_one_plain_pass(model, paged, prompt_ids, close, step_tokens, answers):
    ids, world = prompt_ids(23), World(model, step_tokens=step_tokens)
    world.submit(ids, max_tokens=2)  # its blocks would be reused
    world.run()
    world.submit(prompt_ids(9, seed=1), max_tokens=20)
    request = world.submit(ids, max_tokens=2, prompt_logprobs=3, answers=answers)
    world.submit(prompt_ids(17, seed=2), max_tokens=3, prompt_logprobs=0)
    short = world.submit(prompt_ids(1), max_tokens=1, prompt_logprobs=2)
    world.run()
    expected = paged(model).step([("a", ids)]).log_softmax(-1)
    scores = world.scores[request.id].scores
    assert len(scores) == len(ids) - 1
    chosen = expected[range(len(ids) - 1), ids[1:]]
    torch.testing.assert_close(torch.tensor([score.logprob for score in scores]), chosen, **close[torch.float32])
    best = expected[:-1].topk(3)
    assert [[id_ for id_, _ in score.alternatives] for score in scores] == best.indices.tolist()
    values = torch.tensor([[value for _, value in score.alternatives] for score in scores])
    torch.testing.assert_close(values, best.values, **close[torch.float32])
    assert world.scores[short.id].scores == ()
    assert len(world.scores) == 3


def test_a_step_scores_no_more_rows_than_memory_is_meant_for(model, prompt_ids, monkeypatch):
    monkeypatch.setattr(scheduler, "MAX_SCORED_ROWS", 5)
    world = World(model, step_tokens=64)
    requests = [world.submit(prompt_ids(20, seed=seed), max_tokens=2, prompt_logprobs=1) for seed in range(3)]
    world.submit(prompt_ids(40, seed=9), max_tokens=2)
    steps = []
    run = world.runner.run
    world.runner.run = lambda chunks: steps.append(sum(chunk.num_scored for chunk in chunks)) or run(chunks)
    world.run()
    assert max(steps) == 5
    monkeypatch.undo()
    for seed, request in enumerate(requests):
        whole = World(model, step_tokens=64)
        alone = whole.submit(prompt_ids(20, seed=seed), max_tokens=2, prompt_logprobs=1)
        whole.run()
        found = [score.logprob for score in world.scores[request.id].scores]
        assert found == pytest.approx([score.logprob for score in whole.scores[alone.id].scores], abs=1e-4)
        assert world.answer(request) == whole.answer(alone)


def test_a_step_that_failed_after_its_scores_gives_them_once(model, prompt_ids):
    world = World(model, step_tokens=8)
    request = world.submit(prompt_ids(20), max_tokens=1, prompt_logprobs=0)
    for _ in range(2):
        world.runner.run(world.scheduler.schedule(0.0))
    world.run()
    calm = World(model, step_tokens=8)
    again = calm.submit(prompt_ids(20), max_tokens=1, prompt_logprobs=0)
    calm.run()
    assert world.scores[request.id].scores == calm.scores[again.id].scores


def test_every_answer_of_several_is_that_of_a_request_with_the_seed_plus_its_number(model, prompt_ids):
    params = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "logprobs": 2, "repetition_penalty": 1.3}
    world = World(model, num_blocks=22)  # which does not hold all of them at once
    several = world.submit(prompt_ids(11), **params, seed=2**64 - 2, answers=4)
    world.submit(prompt_ids(30, seed=5), max_tokens=20)
    world.run()
    assert world.scheduler.num_preemptions > 0
    for answer in range(4):
        alone = World(model)
        one = alone.submit(prompt_ids(11), **params, seed=(2**64 - 2 + answer) % 2**64)
        alone.run()
        assert world.answer(several, answer) == alone.answer(one)
        pairs = zip(world.tokens[several.id, answer], alone.tokens[one.id, 0], strict=True)
        assert all(ours.logprob == pytest.approx(theirs.logprob, abs=1e-4) for ours, theirs in pairs)
    assert len({tuple(world.answer(several, answer)) for answer in range(4)}) > 1


def test_an_answer_is_what_a_plain_loop_over_the_whole_text_chooses(model, paged, prompt_ids):
    turns = [set(range(start, start + 40)) for start in range(0, 50, 5)]
    world, ids = World(model), prompt_ids(7)
    world.submit(prompt_ids(20, seed=3), max_tokens=8, temperature=2.0)
    request = world.submit(ids, max_tokens=10, temperature=1.2, top_k=9, seed=5, constraints=(Only(*turns),))
    world.run()
    tokens: list[int] = []
    for turn in turns:
        logits = paged(model).step([("a", [*ids, *tokens])], rows=[len(ids) + len(tokens) - 1]).clone()
        logits[0, [token_id for token_id in range(96) if token_id not in turn]] = -torch.inf
        [chosen] = sample(logits, [RowSampling(temperature=1.2, top_k=9, seed=5, position=len(tokens))])
        tokens.append(chosen.token_id)
    assert world.answer(request) == tokens


def test_every_constraint_holds_at_once_and_each_answer_walks_by_itself(model, prompt_ids):
    first, second = Only(*[{1, 2, 3}] * 4), Only(*[{3, 4}] * 4)
    world = World(model)
    request = world.submit(prompt_ids(5), max_tokens=4, answers=3, constraints=(first, second))
    free = world.submit(prompt_ids(5), max_tokens=4)
    world.run()
    assert [world.answer(request, answer) for answer in range(3)] == [[3] * 4] * 3
    assert first.begun == second.begun == 3
    alone = World(model)
    same = alone.submit(prompt_ids(5), max_tokens=4)
    alone.run()
    assert world.answer(free) == alone.answer(same)


def test_an_end_token_comes_before_min_tokens_only_if_nothing_else_is_allowed(model, prompt_ids):
    world = World(model)
    stop = frozenset({7})
    late = world.submit(
        prompt_ids(5), max_tokens=6, min_tokens=4, stop_token_ids=stop, constraints=(Only(*[{7, 8}] * 6),),
        logit_bias=((7, 100.0),),
    )  # fmt: skip
    soon = world.submit(
        prompt_ids(5), max_tokens=6, min_tokens=4, stop_token_ids=stop, constraints=(Only({8}, {7}, {8}),)
    )
    world.run()
    assert world.answer(late) == [8, 8, 8, 8, 7]
    assert world.answer(soon) == [8, 7]


def test_an_answer_that_cannot_go_on_fails_its_request_and_no_other(model, prompt_ids):
    world = World(model)
    stuck = world.submit(prompt_ids(5), max_tokens=6, constraints=(Only({1}, {2}),))
    empty = world.submit(prompt_ids(5, seed=1), max_tokens=6, constraints=(Only({1, 2}, {2}), Only({1, 2}, {3})))
    other = world.submit(prompt_ids(5, seed=2), max_tokens=6)
    world.run()
    assert world.answer(stuck) == [1, 2]
    assert len(world.answer(empty)) == 1
    assert len(world.answer(other)) == 6
    assert all(isinstance(world.failures[one.id].error, AnswerStuck) for one in (stuck, empty))
    assert world.scheduler.blocks.num_free == world.scheduler.blocks.num_blocks
