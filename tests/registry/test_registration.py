"""Artifacts that are adapters and artifacts that are not, uploaded and registered over real gRPC."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from adapter.base_model import describe_base_model
from adapter.manifest import ManifestFile, digest_file
from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import resources_pb2 as resources
from registry.errors import (
    AdapterRefused,
    BaseModelNotFound,
    BlobCorrupted,
    BlobNotUploaded,
    InvalidManifest,
    InvalidName,
    InvalidReference,
    InvalidRequest,
    VersionNotFound,
    WrongBaseModel,
)
from registry.resources import Provenance, VersionState

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def describe(path: Path, name: str = "") -> ManifestFile:
    """A file's line of a manifest."""
    return ManifestFile(name or path.name, path.stat().st_size, digest_file(path))


def list_files(folder: Path) -> list[Path]:
    """In the order of a manifest."""
    return sorted(folder.iterdir())


async def upload(registry_server, path: Path, name: str = "") -> resources.ManifestFile:
    """Stores a file; returns its line of a manifest."""
    file = describe(path, name)
    await registry_server.client.upload_blob(path, digest=file.digest, size_bytes=file.size_bytes)
    return resources.ManifestFile(path=file.path, size_bytes=file.size_bytes, digest=file.digest)


async def upload_folder(registry_server, folder: Path) -> resources.Manifest:
    """Stores all files of a folder, whatever they are."""
    return resources.Manifest(files=[await upload(registry_server, path) for path in list_files(folder)])


async def register(registry_server, manifest: resources.Manifest, **changes):
    request = pb.RegisterAdapterVersionRequest(
        **{"adapter": "sql", "base_model": "base", "manifest": manifest, **changes}
    )
    return await registry_server.ask(registry_server.stub.RegisterAdapterVersion, request)


async def test_a_registered_version_says_all_about_itself(client, base_model, new_adapter):
    folder = new_adapter(1, rank=3, change_config={"use_rslora": True, "rank_pattern": {"v_proj": 3}})
    provenance = Provenance("abc", "https://run", ("s3://a", "s3://b"), {"team": "data", "é": "ü"})
    answer = await client.register(folder, adapter="sql", base_model=base_model, provenance=provenance)
    version = answer.version
    assert (answer.created, answer.revision, version.number, version.revision) == (True, 2, 1, 2)
    assert (version.rank, version.alpha, version.target_modules) == (3, 4.0, ("q_proj", "v_proj"))
    assert version.features == ("rank_pattern", "rslora")
    assert version.state == VersionState.VALIDATED
    assert version.provenance == provenance
    assert version.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert version.base_model_digest == (await client.get_base_model("base")).digest
    assert await client.get_version("sql", 1) == version
    assert (await client.get_adapter("sql")).latest_version == 1


async def test_the_same_digest_again_is_the_version_already_there(client, base_model, new_adapter):
    first = await client.register(new_adapter(1), adapter="sql", base_model=base_model)
    await client.register(new_adapter(2), adapter="sql", base_model=base_model)
    again = await client.register(new_adapter(1), adapter="sql", base_model=base_model)
    assert (again.created, again.revision, again.version) == (False, 3, first.version)
    assert len(await client.list_versions("sql")) == 2


async def test_registrations_at_once_get_dense_numbers(client, base_model, new_adapter):
    folders = [new_adapter(seed) for seed in range(8)]
    answers = await asyncio.gather(
        *(client.register(folder, adapter="sql", base_model=base_model) for folder in [*folders, *folders])
    )
    numbers = [answer.version.number for answer in answers]
    assert sorted(numbers[:8]) == list(range(1, 9))
    assert numbers[8:] == numbers[:8]
    assert sum(answer.created for answer in answers) == 8
    assert (await client.status()).revision == 9


async def test_a_dry_run_checks_everything_and_stores_nothing(registry_server, client, base_model, new_adapter):
    before = await registry_server.state()
    answer = await client.register(new_adapter(1), adapter="sql", base_model=base_model, validate_only=True)
    assert (answer.created, answer.revision, answer.version.number, answer.version.rank) == (True, 1, 0, 2)
    bad = new_adapter(2, change_config={"use_qalora": True})
    with pytest.raises(AdapterRefused):
        await client.register(bad, adapter="sql", base_model=base_model, validate_only=True)
    assert await registry_server.state() == before


async def test_a_version_may_name_its_parent(client, base_model, new_adapter):
    await client.register(new_adapter(1), adapter="sql", base_model=base_model)
    child = await client.register(new_adapter(2), adapter="sql", base_model=base_model, parent="sql:1")
    assert child.version.parent == "sql:1"


async def test_an_unfit_artifact_is_refused_with_every_reason_and_nothing_is_stored(
    registry_server, base_model, new_adapter
):
    def drop(tensors):
        del tensors[f"{Q_PROJ}.lora_A.weight"]

    def add(tensors):
        tensors[f"{Q_PROJ.replace('q_proj', 'x_proj')}.lora_A.weight"] = np.zeros((2, 8), dtype=np.float32)

    def reshape(tensors):
        tensors[f"{Q_PROJ}.lora_A.weight"] = np.zeros((2, 9), dtype=np.float32)

    def poison(tensors):
        tensors[f"{Q_PROJ}.lora_A.weight"][0, 0] = np.nan
        tensors[f"{Q_PROJ}.lora_B.weight"][0, 0] = np.inf

    before = await registry_server.state()
    for seed, (changes, expected) in enumerate(
        (
            ({"change_tensors": drop}, ["lora_A.weight"]),
            ({"change_tensors": add}, ["x_proj"]),
            ({"change_tensors": reshape}, ["[2, 8]", "[2, 9]"]),
            ({"change_tensors": poison}, ["lora_A", "lora_B", "NaN"]),
            ({"rank": 513}, ["512", "513"]),
            ({"change_config": {"target_modules": ["nothing"]}}, ["target_modules", "v_proj"]),
            ({"change_config": {"use_qalora": True, "bias": "some"}}, ["QA-LoRA", "bias", "some"]),
            ({"change_config": {"peft_type": "IA3"}}, ["IA3"]),
        )
    ):
        manifest = await upload_folder(registry_server, new_adapter(seed, **changes))
        with pytest.raises(AdapterRefused) as refused:
            await register(registry_server, manifest)
        said = " ".join(refused.value.reasons)
        assert all(word in said for word in expected), said
        assert await registry_server.state() == before
    assert await registry_server.client.status()


async def test_files_that_are_no_adapter_are_refused_and_nothing_is_stored(
    registry_server, base_model, new_adapter, tmp_path
):
    good = new_adapter(1)
    config, weights = good / "adapter_config.json", good / "adapter_model.safetensors"
    data = weights.read_bytes()

    async def with_weights(content: bytes, name: str = "adapter_model.safetensors") -> resources.Manifest:
        path = tmp_path / "weights"
        path.write_bytes(content)
        return resources.Manifest(
            files=[await upload(registry_server, config), await upload(registry_server, path, name)]
        )

    async def with_config(content: bytes) -> resources.Manifest:
        path = tmp_path / "config"
        path.write_bytes(content)
        files = [await upload(registry_server, path, "adapter_config.json"), await upload(registry_server, weights)]
        return resources.Manifest(files=files)

    before = await registry_server.state()
    for manifest, expected in (
        (await with_weights(b"\x80\x02}q\x00.", "adapter_model.bin"), "pickle"),
        (await with_weights(b"\x80\x02}q\x00."), "8 bytes"),
        (await with_weights(data[:-4]), "truncated"),
        (await with_weights(data[:4]), "truncated"),
        (await with_weights((2**40).to_bytes(8, "little") + data[8:]), "header"),
        (await with_weights(b""), "truncated"),
        (await with_weights(data, "other.safetensors"), "adapter_model.safetensors"),
        (await with_config(b"[]"), "object"),
        (await with_config(b"{"), "JSON"),
        (await with_config(b'{"r": 1, "r": 2}'), "twice"),
    ):
        with pytest.raises(AdapterRefused) as refused:
            await register(registry_server, manifest)
        assert expected in " ".join(refused.value.reasons), refused.value.reasons
        assert await registry_server.state() == before


async def test_both_files_may_be_wrong_and_both_are_named(registry_server, base_model, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "bad" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterRefused) as refused:
        await register(registry_server, await upload_folder(registry_server, tmp_path / "bad"))
    said = " ".join(refused.value.reasons)
    assert "adapter_config.json" in said
    assert "adapter_model.safetensors" in said


async def test_a_bad_request_is_refused_and_nothing_is_stored(
    registry_server, client, base_model, new_base_model, new_adapter
):
    await client.create_base_model("other", new_base_model(1))
    await client.register(new_adapter(1), adapter="taken", base_model="other")
    manifest = await upload_folder(registry_server, new_adapter(2))
    unsorted = resources.Manifest(files=list(reversed(manifest.files)))
    absent = resources.Manifest()
    absent.CopyFrom(manifest)
    absent.files[0].digest = "sha256:" + 64 * "0"
    wrong_size = resources.Manifest()
    wrong_size.CopyFrom(manifest)
    wrong_size.files[1].size_bytes += 1
    before = await registry_server.state()
    for changes, error in (
        ({"adapter": "a/b"}, InvalidName),
        ({"adapter": ".."}, InvalidName),
        ({"adapter": ""}, InvalidName),
        ({"base_model": "nothing"}, BaseModelNotFound),
        ({"adapter": "taken"}, WrongBaseModel),
        ({"manifest": resources.Manifest()}, InvalidManifest),
        ({"manifest": unsorted}, InvalidManifest),
        ({"manifest": absent}, BlobNotUploaded),
        ({"manifest": wrong_size}, InvalidManifest),
        ({"parent": "sql"}, InvalidReference),
        ({"parent": "sql:9"}, VersionNotFound),
        ({"parent": "sql:1"}, VersionNotFound),
        ({"provenance": resources.Provenance(labels={"x": "y" * 70_000})}, InvalidRequest),
        ({"provenance": resources.Provenance(git_commit="a\0b")}, InvalidRequest),
    ):
        with pytest.raises(error):
            await register(registry_server, changes.pop("manifest", manifest), **changes)
        assert await registry_server.state() == before


async def test_stored_bytes_that_changed_are_found_when_they_are_registered(registry_server, base_model, new_adapter):
    manifest = await upload_folder(registry_server, new_adapter(1))
    digest = manifest.files[1].digest.removeprefix("sha256:")
    stored = registry_server.settings.data_dir / "blobs" / "sha256" / digest[:2] / digest[2:]
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.chmod(0o644)
    stored.write_bytes(data)
    before = await registry_server.state()
    with pytest.raises(BlobCorrupted):
        await register(registry_server, manifest)
    assert await registry_server.state() == before
    await upload_folder(registry_server, new_adapter(1))
    assert (await register(registry_server, manifest)).created


async def test_real_adapters_are_registered_as_they_are(client, base_model, adapters_dir, base_model_dir):
    await client.create_base_model("smollm2", await asyncio.to_thread(describe_base_model, base_model_dir))
    for name, rank in (("pirate", 4), ("sql", 16), ("json", 8), ("classify", 64)):
        answer = await client.register(adapters_dir / name, adapter=name, base_model="smollm2")
        assert answer.version.rank == rank
        with pytest.raises(AdapterRefused):
            await client.register(adapters_dir / name, adapter=f"{name}-on-another", base_model=base_model)
