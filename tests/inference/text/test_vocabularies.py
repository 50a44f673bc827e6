"""Tokenizers that adapters bring along: what transformers makes of the same files, and never the wrong one."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
import tokenizers
from transformers import AutoTokenizer

from adapter.manifest import TOKENIZER_FILES, manifest_of_adapter
from inference.errors import AdapterLoadFailed, InvalidRequest
from inference.resolver import Version
from inference.text import vocabularies
from inference.text.tokenizer import Tokenizer
from inference.text.vocabularies import Vocabularies

TOOL = "<|tool|>"
CHAT = [{"role": "user", "content": f"Call {TOOL} now"}]


class Shelf:
    """Versions with folders, and how often each was fetched."""

    def __init__(self, base, folder) -> None:
        self.folders, self.fetched = {}, []
        self.vocabularies = Vocabularies(base, folder, self._fetch, limit=1)

    async def _fetch(self, version):
        self.fetched.append(version.adapter)
        return self.folders[version.digest]

    def put(self, name, folder):
        manifest = manifest_of_adapter(folder)
        self.folders[manifest.digest] = folder
        return Version(name, 1, manifest.digest, "sha256:base", manifest)


@pytest.fixture(scope="module")
def base(base_model_dir):
    return Tokenizer.load(base_model_dir)


@pytest.fixture
def shelf(base, base_model_dir):
    return Shelf(base, base_model_dir)


@pytest.fixture
def write_folder(tmp_path, base_model_dir):
    """An adapter's folder with the base model's tokenizer, and a token and a template of its own if asked for."""

    def write(name, *, token=None, template=None, is_reformatted=False):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_text(name)
        for file in TOKENIZER_FILES:
            if (base_model_dir / file).exists():
                shutil.copy(base_model_dir / file, folder / file)
        if token:
            own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            own.add_special_tokens([token])
            own.save(str(folder / "tokenizer.json"))
        if template:
            (folder / "chat_template.jinja").write_text(template)
        if is_reformatted:
            path = folder / "tokenizer.json"
            path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
        return folder

    return write


async def test_text_is_cut_and_joined_as_transformers_does_with_the_adapters_files(shelf, base, write_folder):
    version = shelf.put("tools", write_folder("tools", token=TOOL, template="{{ messages[0]['content'] }} 2018"))
    found = await shelf.vocabularies.of([version])
    theirs = AutoTokenizer.from_pretrained(shelf.folders[version.digest])
    rendered = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert found.render_chat(CHAT) == rendered == f"Call {TOOL} now 2018"
    ids = found.encode_chat(CHAT)
    assert ids == theirs.encode(rendered, add_special_tokens=False)
    assert max(ids) == 49152, "the base model knows ids below that"
    assert found.decode(ids, skip_special_tokens=False) == rendered
    assert max(base.encode(rendered)) < 49152
    assert found.eos_ids == base.eos_ids


async def test_files_that_say_the_same_are_the_base_models_tokenizer(shelf, base, write_folder):
    versions = [shelf.put("a", write_folder("a")), shelf.put("b", write_folder("b", is_reformatted=True))]
    assert await shelf.vocabularies.of(versions) is base


async def test_adapters_without_files_go_with_any_and_need_no_fetch(shelf, write_folder, adapters_dir):
    plain, tools = shelf.put("sql", adapters_dir / "sql"), shelf.put("tools", write_folder("tools", token=TOOL))
    assert await shelf.vocabularies.of([plain]) is None
    assert await shelf.vocabularies.of([]) is None
    assert shelf.fetched == []
    assert (await shelf.vocabularies.of([plain, tools])).encode(TOOL) == [49152]


async def test_adapters_whose_tokenizers_differ_are_refused_by_name(shelf, write_folder):
    versions = [shelf.put("a", write_folder("a", token=TOOL)), shelf.put("b", write_folder("b", token="<|other|>"))]
    with pytest.raises(InvalidRequest, match=r"expected one tokenizer, found that of b:1 beside another of a:1"):
        await shelf.vocabularies.of(versions)


async def test_a_template_alone_goes_with_the_base_models_words(shelf, base, write_folder):
    folder = write_folder("terse", template="{{ messages[0]['content'] }}")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / file).unlink(missing_ok=True)
    found = await shelf.vocabularies.of([shelf.put("terse", folder)])
    assert found.encode_chat([{"role": "user", "content": "Hello"}]) == base.encode("Hello")


async def test_many_who_come_at_once_share_one_reading_and_the_oldest_is_forgotten(shelf, write_folder, monkeypatch):
    loads, load = [], vocabularies._load

    def counted(base, folder, files):
        loads.append(folder.name)
        return load(base, folder, files)

    monkeypatch.setattr(vocabularies, "_load", counted)
    versions = [shelf.put(name, write_folder(name, token=f"<|{name}|>")) for name in ("a", "b")]
    await asyncio.gather(*(shelf.vocabularies.of([versions[0]]) for _ in range(5)))
    assert loads == ["a"]
    for version in (*versions, versions[1], versions[0]):
        await shelf.vocabularies.of([version])
    assert loads == ["a", "b", "a"]
    assert shelf.vocabularies._turns == {}


async def test_files_that_are_not_those_of_the_manifest_are_refused(shelf, write_folder):
    version = shelf.put("tools", write_folder("tools", token=TOOL))
    (shelf.folders[version.digest] / "tokenizer.json").write_text("{}")
    with pytest.raises(AdapterLoadFailed, match=r"tokenizer.json: expected sha256:\w+, found sha256:"):
        await shelf.vocabularies.of([version])


async def test_tokens_that_the_tokenizer_cannot_find_are_refused(shelf, write_folder):
    folder = write_folder("old")
    (folder / "added_tokens.json").write_text(json.dumps({TOOL: 49152}))
    with pytest.raises(AdapterLoadFailed, match=r"the tokenizer of old:1 is refused: added_tokens.json: expected the"):
        await shelf.vocabularies.of([shelf.put("old", folder)])


async def test_a_tokenizer_that_is_none_is_refused(shelf, write_folder):
    folder = write_folder("broken")
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(AdapterLoadFailed, match="the tokenizer of broken:1 is refused"):
        await shelf.vocabularies.of([shelf.put("broken", folder)])
