"""The command as a user runs it: a process of its own against a real registry over loopback."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save_file

from adapter.base_model import describe_base_model
from registry.cli import run
from registry.options import DEFAULT_SERVER
from registry.resources import Worker, WorkerAdapter, WorkerAdapterState
from registry.settings import DEFAULT_LISTEN
from registry.signatures import key_id, write_public_key

PROGRAM = Path(sys.executable).parent / "registry"
SHAPES = {
    "model.layers.0.self_attn.q_proj": (8, 8),
    "model.layers.0.self_attn.v_proj": (4, 8),
    "model.layers.0.mlp.down_proj": (8, 16),
}


def make_adapter(folder: Path, *, seed: int = 0, rank: int = 2, **config: Any) -> Path:
    """A PEFT folder for it; each seed has a digest of its own."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (rows, columns) in SHAPES.items():
        if "self_attn" in name:
            tensors[f"base_model.model.{name}.lora_A.weight"] = random.random((rank, columns), dtype=np.float32)
            tensors[f"base_model.model.{name}.lora_B.weight"] = random.random((rows, rank), dtype=np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
async def commands(registry_server: Any, commands_at: Any, base_folder: Path, tmp_path: Path) -> Any:
    """Against a registry with the base model `tiny` and the version `sql:1`."""
    client = registry_server.client
    await client.create_base_model("tiny", describe_base_model(base_folder))
    await client.register(make_adapter(tmp_path / "sql"), adapter="sql", base_model="tiny")
    return commands_at(registry_server.address)


def columns(table: str) -> list[list[str]]:
    """The cells of an aligned table."""
    return [re.split(r" {2,}", line.strip()) for line in table.splitlines() if line.strip()]


async def test_a_base_model_is_added_listed_and_shown(
    registry_server: Any, commands_at: Any, base_folder: Path
) -> None:
    commands = commands_at(registry_server.address)
    assert "no base models yet" in (await commands("base", "list")).out
    added = await commands("base", "add", "tiny", base_folder)
    assert added.out.startswith("added base model tiny (LlamaForCausalLM, 3 modules, ")
    again = await commands.json("base", "add", "tiny", base_folder)
    assert (again["created"], again["base_model"]["name"]) == (False, "tiny")
    header, row = columns((await commands("base", "list")).out)
    assert header == ["NAME", "ARCHITECTURE", "SIZE", "DIGEST", "CREATED"]
    assert row[:2] == ["tiny", "LlamaForCausalLM"]
    assert (await commands.json("base", "list"))["base_models"][0]["name"] == "tiny"
    shown = await commands("base", "show", "tiny")
    assert "model.safetensors" in shown.out
    assert len((await commands.json("base", "show", "tiny"))["modules"]) == 3
    missing = await commands("base", "show", "nope")
    assert (missing.code, missing.out) == (3, "")
    assert "hint: " in missing.err


async def test_register_says_what_it_did(commands: Any, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "second", seed=1, use_rslora=True)
    provenance = ("--parent", "sql:1", "--git-commit", "abc", "--run-uri", "run", "--dataset", "a", "--dataset", "b")
    given = ("register", folder, "--name", "sql", "--base", "tiny", *provenance, "--label", "team=x=y")
    dry = await commands(*given, "--dry-run")
    assert dry.out.startswith("would register sql (rank 2, q_proj, v_proj, ")
    done = await commands.json(*given, "--promote", "canary")
    version = done["version"]
    assert (version["number"], version["parent"], version["features"]) == (2, "sql:1", ["rslora"])
    assert version["provenance"] == {
        "git_commit": "abc",
        "run_uri": "run",
        "dataset_uris": ["a", "b"],
        "labels": {"team": "x=y"},
    }
    assert done["alias"]["targets"][0]["version"] == 2
    again = await commands(*given)
    assert again.out.startswith("already there: sql:2 (rank 2, ")


async def test_an_adapter_that_is_refused_is_listed_with_every_reason(commands: Any, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "dora", use_qalora=True, layer_replication=[[0, 1]])
    ended = await commands("register", folder, "--name", "dora", "--base", "tiny")
    assert (ended.code, ended.out) == (4, "")
    lines = ended.err.splitlines()
    assert lines[0].startswith("error: ")
    assert any("use_qalora" in line for line in lines)
    assert any("layer_replication" in line for line in lines)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "adapter_config.json").write_text("{}")
    (empty / "adapter_model.bin").write_bytes(b"pickle")
    ended = await commands("register", empty, "--name", "dora", "--base", "tiny")
    assert ended.code == 4
    assert "found adapter_model.bin: a pickle" in ended.err


async def test_promote_conditions_and_dry_runs(commands: Any, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "second", seed=1)
    await commands("register", folder, "--name", "sql", "--base", "tiny")
    assert (await commands("promote", "sql", 1, "--dry-run")).out == "sql@production would point at version 1\n"
    assert (await commands("promote", "sql", 1, "--expect", 0)).out == "sql@production now points at version 1\n"
    assert (await commands("promote", "sql", 1)).out == "sql@production already points at version 1\n"
    moved = await commands("promote", "sql", 2, "--expect", 0)
    assert moved.code == 4
    document = await commands.json("promote", "sql", 2, "--expect", 1, "--message", "better")
    assert (document["before"][0]["version"], document["changed"]) == (1, True)
    assert (await commands("promote", "sql", 9)).code == 3
    assert (await commands("retire", "sql", 2)).code == 4
    assert (await commands("retire", "sql", 1)).out == "retired sql:1\n"
    retired = await commands("promote", "sql", 1)
    assert retired.code == 4
    assert "retired" in retired.err


async def test_lists_and_references(commands: Any) -> None:
    await commands("promote", "sql", 1)
    header, row = columns((await commands("list")).out)
    assert header == ["NAME", "BASE MODEL", "LATEST", "ALIASES", "CREATED"]
    assert row[:4] == ["sql", "tiny", "1", "production=1"]
    assert (await commands.json("list", "--base", "other")) == {"adapters": []}
    shown = await commands.json("show", "sql")
    digest = shown["versions"][0]["digest"]
    found = await asyncio.gather(*(commands.json("show", one) for one in ("sql:1", "sql@production", digest)))
    assert [version["number"] for version in found] == [1, 1, 1]
    assert (await commands.json("resolve", digest))["version"]["digest"] == digest
    assert (await commands("resolve", "sql")).out == f"sql:1  {digest}\n"
    text = (await commands("show", "sql:1")).out
    assert digest in text
    assert not any(line != line.rstrip() for line in text.splitlines())
    wrong = [(command, one) for command in ("show", "resolve") for one in ("sql:7", "sql@canary", "nope", "a/b")]
    ends = await asyncio.gather(*(commands(*words) for words in wrong))
    assert [ended.code for ended in ends] == [3, 3, 3, 2] * 2


async def test_status_shows_workers_and_what_they_serve(commands: Any, registry_server: Any) -> None:
    assert "no workers have reported" in (await commands("status")).out
    digest = (await commands.json("resolve", "sql:1"))["version"]["digest"]
    serving = WorkerAdapter("sql", 1, digest, WorkerAdapterState.READY, ("production",))
    await registry_server.client.report_worker(Worker("w1", "host:1", "tiny", digest, 2, (serving,)), lease_s=60)
    assert "sql:1 ready (production)" in (await commands("status")).out
    document = await commands.json("status")
    assert document["status"]["revision"] == 2
    assert document["workers"][0]["adapters"][0]["state"] == "ready"


async def test_a_canary_is_promoted_by_its_share(commands: Any, tmp_path: Path) -> None:
    await commands("register", make_adapter(tmp_path / "second", seed=1), "--name", "sql", "--base", "tiny")
    await commands("promote", "sql", 1)
    said = await commands("promote", "sql", 2, "--canary", "0.5%")
    assert said.out == "sql@production now points at version 1 99.5 % + 2 0.5 %\n"
    kept = await commands("retire", "sql", 2)
    assert kept.code == 4
    forced = await commands("retire", "sql", 2, "--force")
    assert forced.out == (
        "retired sql:2\n"
        "sql@production answers 0.5 % of its requests with an error until it is promoted elsewhere or rolled back\n"
    )


async def test_unneeded_files_are_counted_before_they_are_removed(commands: Any) -> None:
    assert (await commands("gc", "--dry-run")).out == "would remove 0 files, 0 B\n"
    assert (await commands.json("gc"))["count"] == 0
    early = await commands("gc", "--grace-hours", 0)
    assert early.code == 2
    assert "at least 600 s" in early.err


async def test_a_folder_that_the_registry_may_not_read_is_refused(commands: Any, tmp_path: Path) -> None:
    ended = await commands("register", "--source", tmp_path, "--name", "sql", "--base", "tiny")
    assert "it reads none; upload the files" in ended.err
    assert ended.code != 0


async def test_events_are_compacted_on_demand(commands: Any, tmp_path: Path) -> None:
    revision = (await commands.json("status"))["status"]["revision"]
    said = await commands("db", "compact", "--keep-revisions", 1, "--keep-days", 0)
    assert said.out == (f"removed {revision - 1} events; those after revision {revision - 1} of {revision} are kept\n")
    assert (await commands.json("db", "compact"))["removed_events"] == 0


async def test_promote_wait_ends_with_the_fleet(commands: Any, registry_server: Any) -> None:
    client = registry_server.client
    digest = (await commands.json("resolve", "sql:1"))["version"]["digest"]

    def account(state: WorkerAdapterState, revision: int, failure: str = "") -> Worker:
        aliases = ("production",) if state is WorkerAdapterState.READY else ()
        return Worker("w1", "", "tiny", digest, revision, (WorkerAdapter("sql", 1, digest, state, aliases, failure),))

    assert "no live worker" in (await commands("promote", "sql", 1, "--wait")).out
    revision = (await client.status()).revision
    await client.report_worker(account(WorkerAdapterState.LOADING, revision), lease_s=60)
    late = await commands("promote", "sql", 1, "--wait", "--timeout", "0.3")
    assert late.code == 7
    assert "w1: loading" in late.err
    await client.report_worker(account(WorkerAdapterState.FAILED, revision, "NaN in lora_A"), lease_s=60)
    failed = await commands("promote", "sql", 1, "--wait", "-o", "json")
    assert (failed.code, failed.out) == (7, "")
    assert "w1: NaN in lora_A" in failed.err
    await client.report_worker(account(WorkerAdapterState.READY, revision), lease_s=60)
    served = await commands("promote", "sql", 1, "--wait", "-o", "json")
    assert served.code == 0
    assert served.document["workers"] == [{"worker": "w1", "standing": "serving", "failure": ""}]


async def test_watch_writes_one_json_line_per_message(commands: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *("watch", "-o", "json", "--server", commands.address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None

    async def read_until(kind: str) -> Any:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if (message := json.loads(line))["kind"] == kind:
                return message
        raise AssertionError(f"the watch ended without {kind}")

    end = await read_until("SnapshotEnd")
    await commands("promote", "sql", 1)
    change = await read_until("Change")
    assert change["revision"] == end["revision"] + 1
    assert change["events"][0]["happening"]["kind"] == "AliasChanged"
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err + out


async def test_global_options_count_before_and_after_the_command(registry: Any, commands: Any) -> None:
    lines = (
        ("--server", commands.address, "-o", "json", "list"),
        ("--server", "127.0.0.1:1", "-o", "table", "list", "-o", "json", "--server", commands.address),
        ("base", "--server", commands.address, "list", "-o", "json"),
    )
    for ended in await asyncio.gather(*(registry(*line, LORAPLEX_REGISTRY="127.0.0.1:1") for line in lines)):
        assert ended.code == 0, ended
        assert isinstance(ended.document, dict)


async def test_a_registry_that_is_away_is_one_clean_line(registry: Any) -> None:
    lines = (("list",), ("watch",), ("-o", "json", "status"))
    for ended in await asyncio.gather(*(registry(*line, "--server", "127.0.0.1:1") for line in lines)):
        assert (ended.code, ended.out) == (5, "")
        assert ended.err.startswith("error: the registry at 127.0.0.1:1 is unavailable: Connection refused")
        assert "hint: is it running?" in ended.err
        assert len(ended.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("promote sql 0", "is not in the range"),
        ("promote sql x", "is not a valid integer"),
        ("promote sql", "Missing argument 'VERSION'"),
        ("register --name sql --base tiny", "give either PATH"),
        ("promote sql 1 --dry-run --wait", "--dry-run"),
        *((f"promote sql 1 --canary {share}", "such as 10%") for share in ("0", "100%", "x", "nan", "0.001%", "-1%")),
        ("register /nonexistent --name a --base b", "does not exist"),
        ("register / --name a", "Missing option '--base'"),
        ("register / --name a --base b --label x", "expected KEY=VALUE"),
        ("register / --name a --base b --dry-run --promote x", "--dry-run"),
        ("register / --name ../a --base b", "expected letters, digits"),
        ("nope", "No such command"),
        ("-o xml list", "is not one of"),
        ("serve --listen 0.0.0.0:1", "refusing to listen"),
        ("serve --drain-s soon", "expected a number"),
    ],
)
def test_a_wrong_command_line_is_explained(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("error: ")


async def test_help_needs_no_heavy_import() -> None:
    program = (
        "import sys; from registry.cli import run; run(['--help']); run(['promote', '--help']);"
        "print(sorted({'grpc', 'rich', 'sqlalchemy', 'numpy', 'google.protobuf'} & set(sys.modules)))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert out.decode().splitlines()[-1] == "[]", err.decode()


def test_the_client_looks_where_the_server_listens() -> None:
    assert DEFAULT_SERVER == DEFAULT_LISTEN


async def test_versions_are_signed_and_aliases_want_it(commands: Any, tmp_path: Path) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    secret = Ed25519PrivateKey.generate()
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    public.write_text(write_public_key(secret.public_key()))
    wanted = key_id(secret.public_key())
    assert (await commands("policy", "sql")).out == "sql@production wants no signature\n"
    said = await commands("policy", "sql", "--signed-by", public)
    assert said.out == f"sql@production wants a signature by {wanted}\n"
    unsigned = await commands("promote", "sql", 1)
    assert unsigned.code == 4
    signed = await commands("sign", "sql:1", "--signing-key", key)
    assert (signed.err, signed.out) == ("", f"signed sql:1 with the key {wanted}\n")
    assert (await commands("promote", "sql", 1)).code == 0
    assert wanted in (await commands("show", "sql:1")).out
    other = make_adapter(tmp_path / "other", seed=2)
    made = await commands(
        "register", other, "--name", "sql", "--base", "tiny", "--signing-key", key, "--promote", "production"
    )
    assert made.code == 0
    assert (await commands("policy", "sql", "--no-signature")).out == "sql@production wants no signature\n"
    assert (await commands("sign", "sql:1", "--signing-key", public)).code != 0
