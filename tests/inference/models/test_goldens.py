"""The real base model answers as transformers does; the golden answers were made by other code, one prompt each."""

from __future__ import annotations

import pytest
import torch

from inference.models.llama import Llama

NEAR_TIE = 0.01  # a margin between the first two logits that sums in another order may turn in float32
# By dtype: its name in the goldens, and how far logits of order 20 and log-probabilities may be off after 30 layers
# that sum in another order. bfloat16 steps between 16 and 32 are 0.125 wide.
TOLERANCES = {"float32": ("fp32", 5e-4), "bfloat16": ("bf16", 0.375)}


@pytest.fixture(scope="module")
def base_entries(goldens):
    return [entry for entry in goldens["entries"] if entry["adapter"] is None]


@pytest.fixture
def fp32_model(base_model_dir):
    return Llama.load(base_model_dir, "float32")


def assert_answers_agree(answer, golden, logprobs):
    for step, expected in enumerate(golden["output_ids"]):
        if golden["margins"][step] < NEAR_TIE:
            return
        assert answer[step] == expected, f"step {step}"
        assert logprobs[step] == pytest.approx(golden["logprobs"][step], abs=TOLERANCES["float32"][1])


def test_greedy_answers_in_one_mixed_batch_are_the_golden_ones(fp32_model, base_entries, paged):
    sequences = paged(fp32_model, block_size=16)
    chunks = [(entry["prompt"], entry["prompt_ids"]) for entry in base_entries]
    answers = {name: [] for name, _ in chunks}
    logprobs = {name: [] for name, _ in chunks}
    for _ in range(max(len(entry["fp32"]["output_ids"]) for entry in base_entries)):
        ends = torch.tensor([len(ids) for _, ids in chunks]).cumsum(0) - 1
        logits = sequences.step(chunks, rows=ends.tolist())
        best = logits.log_softmax(-1).max(-1)
        for (name, _), token_id, logprob in zip(chunks, best.indices.tolist(), best.values.tolist(), strict=True):
            answers[name].append(token_id)
            logprobs[name].append(logprob)
        chunks = [(name, answers[name][-1:]) for name in answers]
    for entry in base_entries:
        assert_answers_agree(answers[entry["prompt"]], entry["fp32"], logprobs[entry["prompt"]])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_first_logits_and_the_answers_log_probabilities_are_the_golden_ones(base_model_dir, base_entries, paged, dtype):
    model = Llama.load(base_model_dir, dtype)
    key, atol = TOLERANCES[dtype]
    for entry in base_entries:
        golden, start = entry[key], len(entry["prompt_ids"]) - 1
        logits = paged(model, block_size=16).step([("a", entry["prompt_ids"] + golden["output_ids"][:-1])])[start:]
        ids, expected = zip(*golden["first_step_top5"], strict=True)
        torch.testing.assert_close(logits[0, list(ids)], torch.tensor(expected), rtol=0, atol=atol)
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(golden["output_ids"])[:, None]).flatten()
        torch.testing.assert_close(chosen, torch.tensor(golden["logprobs"]), rtol=0, atol=atol)
