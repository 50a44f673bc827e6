"""Commands that look back, undo and grant, as users run them: processes of their own against a real registry."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.cli import run
from registry.exits import EXIT_CODES
from rpc.security import Security, hash_secret

SECRET = "the secret in the file"


@pytest.fixture
async def commands(registry_server: Any, commands_at: Any, base_model: str, new_adapter: Callable[..., Any]) -> Any:
    """Against a registry with sql:1 and sql:2, which continues it; production points at 2 and pointed at 1."""
    client = registry_server.client
    await client.register(new_adapter(1), adapter="sql", base_model=base_model)
    await client.register(new_adapter(2, rank=4), adapter="sql", base_model=base_model, parent="sql:1")
    await client.promote("sql", 1, message="first")
    await client.promote("sql", 2)
    return commands_at(registry_server.address)


async def test_rollback_goes_back_one_step_and_history_remembers(commands: Any) -> None:
    assert (await commands("rollback", "sql", "--expect", 1)).code == 4
    done = await commands("rollback", "sql", "--expect", 2, "--message", "slower", "--wait")
    assert done.out == "sql@production now points at version 1\nno live worker runs its base model\n"
    lines = (await commands("history", "sql")).out.splitlines()
    assert [line.split()[0] for line in lines] == ["REVISION", "6", "5", "4"]
    assert lines[1].endswith("slower")
    changes = (await commands.json("history", "sql"))["changes"]
    assert [one["after"][0]["version"] for one in changes] == [1, 2, 1]
    first = await commands("rollback", "sql", "--alias", "canary")
    assert first.code == 3
    document = await commands.json("promote", "sql", 1, "--alias", "canary")
    assert document["changed"]
    nowhere = await commands("rollback", "sql", "--alias", "canary")
    assert nowhere.code == 4
    assert "hint: `registry history NAME`" in nowhere.err


async def test_unretire_brings_a_version_back(commands: Any) -> None:
    early = await commands("unretire", "sql", 1)
    assert (early.code, early.out) == (4, "")
    assert (await commands("retire", "sql", 1)).code == 0
    refused = await commands("promote", "sql", 1)
    assert "hint: `registry unretire NAME VERSION` brings it back" in refused.err
    assert (await commands("unretire", "sql", 1)).out == "sql:1 is validated again\n"
    assert (await commands("promote", "sql", 1)).code == 0


async def test_diff_shows_what_differs_and_nothing_else(commands: Any) -> None:
    shown = (await commands("diff", "sql:1", "sql@production")).out
    assert shown.splitlines()[0].split() == ["sql:1", "sql:2"]
    assert [line.split()[0] for line in shown.splitlines()[1:]] == [
        "digest",
        "rank",
        "parent",
        "size",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    document = await commands.json("diff", "sql:1", "sql:2")
    assert {"fact": "rank", "a": "2", "b": "4"} in document["differences"]
    assert (await commands("diff", "sql:2", "sql")).out == "sql:2 and sql:2 do not differ\n"
    assert (await commands("diff", "sql:2", "sql:9")).code == 3


async def test_lineage_is_drawn_as_a_tree(commands: Any) -> None:
    digests = {n: (await commands.json("show", f"sql:{n}"))["digest"][:19] for n in (1, 2)}
    base = (await commands.json("base", "show", "base"))["digest"][:19]
    assert (await commands("lineage", "sql")).out.splitlines() == [
        f"sql:2  {digests[2]}",
        f"├── continued from: sql:1  {digests[1]}",
        f"│   └── trained on: base model base  {base}",
        f"└── trained on: base model base  {base}",
    ]
    down = await commands.json("lineage", "--base", "base", "--descendants")
    assert [node["key"]["id"] for node in down["nodes"]] == ["base", "sql:1", "sql:2"]
    near = await commands("lineage", "sql:2", "--depth", 1)
    assert near.out.splitlines()[-1] == "there is more; --depth goes further"
    for wrong in (("lineage",), ("lineage", "sql", "--base", "base"), ("lineage", "sql", "--depth", 33)):
        assert (await commands(*wrong)).code == 2


async def test_verify_finds_bytes_that_changed_on_disk(commands: Any, registry_server: Any) -> None:
    whole = await commands("verify", "sql:1")
    assert whole.out == "sql:1 is intact: 2 files hashed, and it fits base\n"
    version = await registry_server.client.get_version("sql", 1)
    weights = next(file for file in version.manifest.files if file.path.endswith(".safetensors"))
    (stored,) = registry_server.settings.data_dir.rglob(weights.digest.removeprefix("sha256:")[2:])
    stored.chmod(0o644)
    stored.write_bytes(b"\0" + stored.read_bytes()[1:])
    damaged = await commands("verify", "sql:1")
    assert (damaged.code, damaged.out) == (8, "")
    assert "adapter_model.safetensors: the file is gone or its bytes no longer have" in damaged.err
    assert "hint: " in damaged.err
    told = await commands("verify", "sql:1", "-o", "json")
    assert (told.code, len(told.document["problems"])) == (8, 1)
    assert (await commands("verify", "sql:2")).code == 0


async def test_audit_shows_who_did_what(commands: Any) -> None:
    lines = (await commands("audit", "--limit", 2)).out.splitlines()
    assert lines[0].split()[:2] == ["REVISION", "TIME"]
    assert len(lines) == 3
    assert "PromoteAdapterVersion" in lines[1]
    entries = (await commands.json("audit", "--adapter", "sql"))["entries"]
    assert [one["revision"] for one in entries] == [5, 4, 3, 2]
    assert (entries[1]["message"], json.loads(entries[1]["after"])[0]["version"]) == ("first", 1)
    assert (await commands.json("audit", "--actor", "nobody")) == {"entries": []}


async def test_protect_and_unprotect(commands: Any) -> None:
    assert (await commands("protect", "sql")).out == "sql@production is protected\n"
    assert (await commands.json("show", "sql"))["adapter"]["aliases"][0]["protected"]
    assert "production=2 (protected)" in (await commands("list")).out
    assert (await commands("unprotect", "sql")).out == "sql@production is not protected\n"
    assert (await commands("protect", "sql", "--alias", "nope")).code == 3


async def test_tokens_from_the_first_to_the_last(
    settings: Any, serve_here: Any, commands_at: Any, registry: Any, tmp_path: Path
) -> None:
    guarded = dataclasses.replace(settings, security=Security(token_hashes={"root": hash_secret(SECRET)}))
    async with serve_here(guarded) as server:

        async def ask(secret: str, *words: object) -> Any:
            return await registry(*words, LORAPLEX_REGISTRY=server.address, LORAPLEX_REGISTRY_TOKEN=secret)

        stranger = await commands_at(server.address)("list")
        assert (stranger.code, stranger.out) == (6, "")
        assert "hint: give a token" in stranger.err
        made = await ask(SECRET, "token", "create", "ci", "--scope", "read", "--expires", "90d")
        secret = made.out.strip()
        assert secret.startswith("lplx_")
        assert "shown only now" in made.err
        assert (await ask(secret, "list")).code == 0
        refused = await ask(secret, "token", "list")
        assert refused.code == 6
        assert "expected the scope admin, found read" in refused.err
        listed = (await ask(SECRET, "token", "list", "-o", "json")).document["tokens"]
        assert [(one["name"], one["scopes"]) for one in listed] == [("ci", ["read"])]
        rotated = await ask(SECRET, "token", "rotate", listed[0]["id"], "--grace", "0s", "-o", "json")
        assert rotated.document["replaced"]["revoke_time"]
        assert (await ask(secret, "list")).code == 6
        new = rotated.document["secret"]
        assert (await ask(new, "list")).code == 0
        assert (await ask(SECRET, "token", "revoke", rotated.document["token"]["id"])).code == 0
        assert (await ask(new, "list")).code == 6
        states = (await ask(SECRET, "token", "list")).out
        assert states.count("revoked") == 2
        missing = await ask(SECRET, "token", "revoke", "nothing")
        assert (missing.code, "hint: `registry token list`" in missing.err) == (3, True)


async def test_yaml_is_the_same_document_as_json(commands: Any) -> None:
    for words in (("list",), ("show", "sql"), ("history", "sql"), ("lineage", "sql"), ("base", "list")):
        in_yaml = await commands(*words, "-o", "yaml")
        assert yaml.safe_load(in_yaml.out) == await commands.json(*words)


async def test_a_flag_is_stronger_than_the_environment_and_that_than_the_file(
    registry: Any, commands: Any, tmp_path: Path
) -> None:
    config = tmp_path / "loraplex" / "registry.toml"
    config.parent.mkdir()
    config.write_text(f'server = "{commands.address}"\noutput = "json"\n')
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert (await registry("list", **home)).document["adapters"]
    assert (await registry("list", "-o", "table", **home)).out.startswith("NAME")
    away = await registry("list", **home, LORAPLEX_REGISTRY="127.0.0.1:1")
    assert away.code == 5
    back = await registry("list", "--server", commands.address, **home, LORAPLEX_REGISTRY="127.0.0.1:1")
    assert back.code == 0
    named = await registry("--config", config, "list")
    assert named.code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sever = 'x'", "expected one of ca, cert, key, output, server, token, found sever"),
        ("server = ", "Invalid value"),
        ("server = [1]", "server: expected a text or a number"),
        ("output = 'xml'", "output: expected one of table, json, yaml"),
        ("serve = 1", "expected a table [serve]"),
    ],
)
def test_a_wrong_configuration_file_is_explained(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert run(["--config", str(file), "list"]) == 2
    assert words in capsys.readouterr().err


def test_help_lists_the_exit_codes_and_how_to_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(meaning in shown for meaning in EXIT_CODES.values())
    assert "_REGISTRY_COMPLETE=bash_source" in shown


async def test_completion_knows_the_commands(registry: Any) -> None:
    given = {"_REGISTRY_COMPLETE": "bash_complete", "COMP_WORDS": "registry ro", "COMP_CWORD": "1"}
    assert (await registry(**given)).out.split(",")[-1].strip() == "rollback"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("token create ci", "Missing option '--scope'"),
        ("token create ci --scope write", "is not one of"),
        ("token create ci --scope read --expires soon", "expected a duration"),
        ("base add x / --parent small", "expected NAME:RELATION"),
        ("base add x / --parent small:cousin", "expected NAME:RELATION"),
        ("base add x / --parent small:adapter-merge", "expected NAME:RELATION"),
        ("base add x / --parent small:merge:sql:1", "expected NAME:RELATION"),
        ("rollback sql --expect 0", "is not in the range"),
    ],
)
def test_a_wrong_command_line_is_explained(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    assert words in capsys.readouterr().err


async def test_a_base_model_is_added_with_its_parents(
    registry_server: Any, commands_at: Any, base_folder: Path
) -> None:
    commands = commands_at(registry_server.address)
    given = ("--parent", "Org/Model:quantized", "--parent", "other:adapter-merge:sql:3")
    added = await commands.json("base", "add", "tiny", base_folder, *given)
    assert added["base_model"]["parents"] == [
        {"base_model": "Org/Model", "relation": "quantized", "adapter_version": ""},
        {"base_model": "other", "relation": "adapter_merge", "adapter_version": "sql:3"},
    ]
    drawn = (await commands("lineage", "--base", "tiny")).out
    assert "├── quantized: base model Org/Model  (not registered)" in drawn
    assert "└── adapter merge: sql:3  (not registered)" in drawn
    circle = await commands("base", "add", "Org", base_folder, "--parent", "Org:finetune")
    assert circle.code == 4
    assert "hint: `registry lineage`" in circle.err
