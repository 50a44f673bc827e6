"""A Generate call from text to text on a tiny worker, whose adapter brings tokens of its own along."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import warnings

import pytest
import tokenizers
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from inference.app import open_core, open_service
from inference.errors import InvalidRequest
from inference.lora.bank import Bank
from inference.settings import Settings
from loraplex.inference.v1 import inference_service_pb2 as pb

# PEFT 0.21 asks transformers 5.23 for a property that the latter deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WORDS = {f"w{n}": n for n in range(96)}
CALL, RETURN = 96, 97
PROMPT = "w5 w9 <call> w30 <return> w7"


def write_tokenizer(folder, *added):
    tokenizer = tokenizers.Tokenizer(models.WordLevel(WORDS, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added))
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.fixture(scope="module")
def base(tiny_model_dir, tmp_path_factory):
    """The folder of a model of 96 words."""
    folder = tmp_path_factory.mktemp("words") / "words"
    AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama with a tied head")).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tools(base, tmp_path_factory):
    """The folder of an adapter with two more words, and PEFT's model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model.resize_token_embeddings(98, mean_resizing=False)
    torch.manual_seed(5)  # for what PEFT itself draws
    generator = torch.Generator().manual_seed(5)
    folder = tmp_path_factory.mktemp("adapters") / "tools"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about tied weights: known
        model.get_input_embeddings().weight[96:].normal_(std=0.5, generator=generator)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3, generator=generator)
        model.save_pretrained(folder)
    write_tokenizer(folder, "<call>", "<return>")
    return folder, model


@pytest.fixture
def settings(base, tools, tmp_path):
    return Settings(
        model=base,
        base_model_name="words",
        state_dir=tmp_path / "state",
        adapters=(f"tools={tools[0]}", f"bare={bare(tools[0], tmp_path)}"),
        kv_memory=2**20,
        adapter_memory=2**20,
        threads=1,
    )


@pytest.fixture
async def generate(settings):
    """`generate(text, "tools")`: the ids and the text of a greedy answer."""
    async with open_worker(settings) as (_, call):
        yield call


@contextlib.asynccontextmanager
async def open_worker(settings):
    """The core of a worker, and what asks it."""
    async with open_core(settings) as core, open_service(settings, core) as service:

        async def call(prompt, *adapters, max_tokens=12):
            what = {"text": prompt} if isinstance(prompt, str) else {"token_ids": pb.TokenIds(ids=prompt)}
            uses = [pb.AdapterUse(reference=name) for name in adapters]
            stop = pb.StopConditions(max_tokens=max_tokens, ignore_eos=True)
            request = pb.GenerateRequest(**what, adapters=uses, stop=stop)
            ids, text = [], ""
            async with contextlib.aclosing(service.Generate(request, None)) as stream:
                async for message in stream:
                    ids += message.chunk.token_ids
                    text += message.chunk.text
            return ids, text

        yield core, call


def bare(folder, parent):
    """The same adapter without its tokenizer."""
    copy = parent / "bare"
    copy.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (copy / name).write_bytes((folder / name).read_bytes())
    return copy


def greedy(model, ids, count):
    """What transformers answers."""
    known = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            known.append(int(model(torch.tensor([known])).logits[0, -1].argmax()))
    return known[len(ids) :]


async def test_a_prompt_is_read_and_answered_in_the_words_of_its_adapter(generate, tools, base):
    folder, model = tools
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = own.encode(PROMPT).ids
    assert ids == [5, 9, CALL, 30, RETURN, 7]
    expected = greedy(model, ids, 12)
    assert {CALL, RETURN} & set(expected), "the answer has words that the base model lacks"
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    found, other, tokens = await asyncio.gather(generate(PROMPT, "tools"), generate("w5 w9 w7"), generate(ids, "bare"))
    assert found == (expected, own.decode(expected))
    assert other[0] == greedy(theirs, [5, 9, 7], 12)
    assert max(other[0]) < 96, "no one else answers with them"
    assert tokens[0] == expected


async def test_text_becomes_tokens_and_tokens_text_in_the_words_of_an_adapter(settings, tools):
    async with open_core(settings) as core, open_service(settings, core) as service:
        for adapters, ids in (["tools"], [5, CALL]), ([], [5, 0]):
            found = await service.Tokenize(pb.TokenizeRequest(text="w5 <call>", adapters=adapters), None)
            assert list(found.token_ids) == ids
        for adapters, text in (["tools"], "w5<call>"), ([], "w5"):
            ids = [5, CALL] if adapters else [5]
            found = await service.Detokenize(pb.DetokenizeRequest(token_ids=ids, adapters=adapters), None)
            assert found.text == text
        with pytest.raises(InvalidRequest, match="token_ids: expected ids below 96, found 96"):
            await service.Detokenize(pb.DetokenizeRequest(token_ids=[CALL]), None)
        assert core.adapters.loaded() == [], "nothing needed weights"


async def test_tokens_are_known_with_their_adapter_only(generate):
    with pytest.raises(InvalidRequest, match="token_ids: expected ids below 96, found 97"):
        await generate([5, RETURN])
    with pytest.raises(InvalidRequest, match="token_ids: expected ids below 98, found 98"):
        await generate([5, 98], "tools")


async def test_text_for_a_vocabulary_without_its_tokenizer_is_refused(generate):
    with pytest.raises(
        InvalidRequest, match=r"expected the tokenizer of bare beside its weights.*98 tokens of its own"
    ):
        await generate("w5", "bare")


async def test_an_adapter_that_the_worker_merges_answers_as_before_and_the_base_model_too(settings, tools, monkeypatch):
    ids = [5, 9, CALL, 30, RETURN, 7]
    async with open_worker(settings) as (_, generate):
        before = await generate(ids, "tools"), await generate([5, 9, 7])
    used, merge = asyncio.Event(), Bank.merge

    def noted(bank, merged):
        merge(bank, merged)
        if merged is not None:
            loop.call_soon_threadsafe(used.set)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Bank, "merge", noted)
    async with open_worker(dataclasses.replace(settings, merge="tools")) as (core, generate):
        await used.wait()
        assert len(core.bank._merged.linears) == 3, "the attention's first projection of each layer"
        assert (await generate(ids, "tools"), await generate([5, 9, 7])) == before


def test_merging_and_equal_bits_in_any_batch_exclude_each_other(settings):
    with pytest.raises(InvalidRequest, match="merge: expected none in deterministic steps"):
        dataclasses.replace(settings, merge="tools", deterministic=True)


async def test_guides_and_bad_words_are_in_the_words_of_the_adapter_beside_rows_without_it(settings):
    async def ask(service, *adapters, bad_words=(), **fields):
        request = pb.GenerateRequest(
            text="w5 w9 w7",
            adapters=[pb.AdapterUse(reference=name) for name in adapters],
            stop=pb.StopConditions(max_tokens=8),
            sampling=pb.SamplingParams(temperature=1.0, seed=3, bad_words=bad_words),
            **fields,
        )
        async with contextlib.aclosing(service.Generate(request, None)) as stream:
            chunks = [message.chunk async for message in stream]
        return [token_id for chunk in chunks for token_id in chunk.token_ids], "".join(chunk.text for chunk in chunks)

    async with open_core(settings) as core, open_service(settings, core) as service:
        calls = pb.Guide(regex="(<call>|w9[0-5]){5}")
        words = pb.Guide(regex="(w3[0-9]){4}")
        guided, plain, base, free = await asyncio.gather(
            ask(service, "tools", guide=calls),
            ask(service, "tools", bad_words=["<call>", "l"]),
            ask(service, guide=words, bad_words=["w31"]),
            ask(service),
        )
        assert len(guided[0]) == 6, "five words and the end"
        assert set(guided[0][:5]) <= {CALL, *range(90, 96)}
        assert re.fullmatch("(<call>|w9[0-5]){5}", guided[1])
        assert CALL not in plain[0]
        assert [token_id // 10 for token_id in base[0][:4]] == [3] * 4
        assert 31 not in base[0]
        assert free == await ask(service), "wherever the logits are wider, other rows draw the same"
