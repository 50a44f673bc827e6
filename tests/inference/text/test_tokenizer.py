"""A model's folder gives the token ids of the golden prompts, and text back."""

from __future__ import annotations

import json
import random
import re

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, processors

from inference.constraints.forms import Form, FormKind, read
from inference.constraints.guides import Guide, wrap
from inference.errors import BaseModelRefused
from inference.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def real(base_model_dir):
    return Tokenizer.load(base_model_dir)


def test_golden_prompts_become_the_golden_ids(real, goldens):
    for entry in goldens["entries"]:
        messages = [{"role": "user", "content": entry["prompt"]}]
        ids = real.encode(entry["prompt"]) if entry["raw"] else real.encode_chat(messages)
        assert ids == entry["prompt_ids"]


def test_golden_answers_become_the_golden_texts_at_once_and_token_by_token(real, goldens):
    for entry in goldens["entries"]:
        decoder = real.incremental_decoder()
        ids = entry["fp32"]["output_ids"]
        pieces = "".join(map(decoder.push, ids)) + decoder.finish()
        assert pieces == real.decode(ids)
        assert pieces.strip() == entry["fp32"]["text"].strip()


def test_a_rendered_chat_is_encoded_as_the_chat_itself(real):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert real.encode_rendered(real.render_chat(messages)) == real.encode_chat(messages)


def test_special_tokens_are_text_only_when_asked_for(real):
    ids = real.encode("<|im_start|>hi<|im_end|>")
    assert real.decode(ids) == "hi"
    assert real.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"
    decoder = real.incremental_decoder(skip_special_tokens=False)
    assert "".join(map(decoder.push, ids)) + decoder.finish() == "<|im_start|>hi<|im_end|>"


def test_the_models_own_end_token_is_known(real):
    assert real.eos_ids == {2}


@settings(max_examples=50, deadline=None)  # the first example may wait for the tokenizer to load
@given(data=st.data())
def test_the_pieces_of_the_real_vocabulary_together_are_the_text_of_all_ids(real, data):
    ids = data.draw(st.lists(st.integers(0, 49_151), max_size=30))
    decoder = real.incremental_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.finish() == real.decode(ids)


# The vocabulary was trained on text and lacks 21 bytes, some control characters' among them.
READABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7FF, exclude_categories=["Cc"])


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=READABLE, max_size=40))
def test_text_survives_its_way_through_tokens(real, text):
    ids = real.encode(text)
    decoder = real.incremental_decoder(skip_special_tokens=False)
    assert "".join(map(decoder.push, ids)) + decoder.finish() == text


def write_llama2_like(folder, *, eos=None, **config):
    """A folder in the form of Llama 2: a bos before plain prompts, marks for spaces, a token for each byte."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[("▁", "a"), ("▁", "b")], byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "chat_template": "{{bos_token}}{{messages[0].content}}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | config))
    if eos is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return folder


def test_a_plain_prompt_begins_with_bos_and_a_rendered_chat_with_its_own_only(tmp_path):
    tokenizer = Tokenizer.load(write_llama2_like(tmp_path))
    assert tokenizer.encode("a")[0] == 1
    assert tokenizer.encode_chat([{"role": "user", "content": "a"}]).count(1) == 1


def test_prompts_are_neither_cut_nor_padded_whatever_the_file_says(tmp_path):
    tokenizer = Tokenizer.load(write_llama2_like(tmp_path))
    assert len(tokenizer.encode("a b a b a b")) == 7


def test_an_answer_that_goes_on_with_a_prompt_keeps_its_space(tmp_path):
    tokenizer = Tokenizer.load(write_llama2_like(tmp_path))
    prompt, answer = tokenizer.encode("a b"), tokenizer.encode_rendered("b a")
    alone, after = tokenizer.incremental_decoder(), tokenizer.incremental_decoder(after=prompt)
    assert "".join(map(alone.push, answer)) == "b a"
    assert tokenizer.decode(prompt) + "".join(map(after.push, answer)) == "a b b a" == tokenizer.decode(prompt + answer)


@pytest.mark.parametrize(("eos", "expected"), [(None, {2}), (7, {2, 7}), ([7, 8], {2, 7, 8})])
def test_an_answer_ends_at_the_tokens_of_the_generation_configuration_and_the_tokenizers(tmp_path, eos, expected):
    assert Tokenizer.load(write_llama2_like(tmp_path, eos=eos)).eos_ids == expected


def test_an_end_token_has_no_text_whatever_it_spells(tmp_path):
    tokenizer = Tokenizer.load(write_llama2_like(tmp_path, eos=[2, 263]))
    ids = tokenizer.encode_rendered("a b a")
    assert 263 in ids
    decoder = tokenizer.incremental_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.finish() == tokenizer.decode(ids) == "a a"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a b a"
    assert tokenizer.vocabulary[263] == tokenizer.vocabulary[2] == b""


def test_open_bytes_are_those_of_a_character_that_is_not_complete(tmp_path):
    tokenizer = Tokenizer.load(write_llama2_like(tmp_path))
    ids = tokenizer.encode_rendered("aé😀")
    assert [tokenizer.open_bytes(ids[:-count]) for count in range(1, 5)] == [
        "😀".encode()[:3], "😀".encode()[:2], "😀".encode()[:1], b"",
    ]  # fmt: skip
    assert tokenizer.open_bytes(ids) == tokenizer.open_bytes([]) == b""


def test_an_end_token_may_lie_beyond_the_tokenizers_own_and_one_below_0_is_none(tmp_path):
    tokenizer = Tokenizer.load(write_llama2_like(tmp_path, eos=[300, -1]))
    assert tokenizer.eos_ids == {2, 300}
    assert len(tokenizer.vocabulary) == 301
    allowed = Guide(read(Form(FormKind.REGEX, "a?"), wrap(tokenizer))).begin().allowed([])
    assert [token_id for token_id, may in enumerate(allowed.tolist()) if may and token_id in (2, 300)] == [2, 300]


@pytest.mark.parametrize("pattern", [" a", "( b| a){2,3}", "[ab ]{2,6}", "é{1,2}", "(a|é) ?😀", " {1,4}"])
def test_a_guided_answer_in_marks_for_spaces_has_its_form_from_the_first_space_on(tmp_path, pattern):
    tokenizer, rng = Tokenizer.load(write_llama2_like(tmp_path)), random.Random(pattern)
    guide = Guide(read(Form(FormKind.REGEX, pattern), wrap(tokenizer)))
    for _ in range(10):
        walk, ids = guide.begin(), []
        while True:
            choices = [token_id for token_id, may in enumerate(walk.allowed(ids).tolist()) if may]
            chosen = rng.choice(choices)
            if chosen in tokenizer.eos_ids:
                break
            ids.append(chosen)
        decoder = tokenizer.exact_decoder()
        text = "".join(map(decoder.push, ids)) + decoder.finish()
        assert re.fullmatch(pattern, text), ids


def test_end_tokens_that_are_no_ids_are_refused(tmp_path):
    with pytest.raises(BaseModelRefused, match="eos_token_id: expected an integer"):
        Tokenizer.load(write_llama2_like(tmp_path, eos=["</s>"]))


def test_an_added_token_that_the_tokenizer_does_not_know_is_refused(tmp_path):
    folder = write_llama2_like(tmp_path, added_tokens_decoder={"300": {"content": "<tool>"}})
    with pytest.raises(BaseModelRefused, match="expected the added token '<tool>' at 300"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("text", "expected"), [(None, "holds no tokenizer.json"), ("{", "not JSON"), ("{}", "tokenizer.json")]
)
def test_a_folder_without_a_readable_tokenizer_is_refused(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BaseModelRefused, match=expected):
        Tokenizer.load(tmp_path)
