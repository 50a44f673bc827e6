"""The client against the real registry, and against one that fails on purpose."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adapter.base_model import BaseModelDescription
from adapter.manifest import Manifest, ManifestFile
from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import registry_service_pb2_grpc as rpcs
from loraplex.registry.v1 import resources_pb2
from loraplex.registry.v1 import watch_service_pb2 as watch_pb
from loraplex.registry.v1 import watch_service_pb2_grpc as watch_rpcs
from registry import fleet_messages, retries, transfers
from registry.client import RegistryClient
from registry.errors import (
    AdapterNotFound,
    AdapterRefused,
    AliasMoved,
    BaseModelExists,
    BlobCorrupted,
    BlobMismatch,
    BlobNotFound,
    BlobTooLarge,
    DeadlineExceeded,
    PermissionDenied,
    RegistryError,
    RevisionCompacted,
    StoreUnavailable,
    VersionInUse,
    VersionRetired,
    WrongBaseModel,
)
from registry.resources import (
    AdapterVersion,
    Alias,
    Change,
    Progress,
    Provenance,
    SnapshotEnd,
    SnapshotItem,
    VersionState,
    WatchMessage,
    Worker,
    WorkerAdapter,
    WorkerAdapterState,
    WorkerState,
)
from rpc.channel import connect
from rpc.security import ClientSecurity, Security
from rpc.server import Server, Service

SMOL_SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}


def describe_smol(*, seed: int = 0) -> BaseModelDescription:
    """The shapes of the base model that the example adapters were trained for."""
    digests = [(name, f"sha256:{seed:032x}{ord(name[0]):032x}") for name in ("config.json", "model.safetensors")]
    return BaseModelDescription(
        architecture="LlamaForCausalLM",
        modules={f"model.layers.{layer}.{name}": shape for layer in range(30) for name, shape in SMOL_SHAPES.items()},
        manifest=Manifest(tuple(ManifestFile(name, 1, digest) for name, digest in digests)),
    )


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses too short to notice."""
    monkeypatch.setattr(retries, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(retries, "LAST_BACKOFF_S", 0.01)


@pytest.fixture
async def smol(client: RegistryClient) -> str:
    """The name of the registered base model."""
    await client.create_base_model("smol", describe_smol())
    return "smol"


async def test_a_base_model_is_created_once(client: RegistryClient) -> None:
    first = await client.create_base_model("smol", describe_smol())
    again = await client.create_base_model("smol", describe_smol())
    assert (first.created, again.created) == (True, False)
    assert first.base_model.digest == again.base_model.digest == describe_smol().digest
    assert len((await client.get_base_model("smol")).modules) == 210
    assert [model.name for model in await client.list_base_models()] == ["smol"]
    with pytest.raises(BaseModelExists):
        await client.create_base_model("smol", describe_smol(seed=1))


async def test_register_uploads_checks_and_is_idempotent(client: RegistryClient, smol: str, adapters_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    first = await client.register(
        adapters_dir / "json",
        adapter="json",
        base_model=smol,
        provenance=Provenance("abc", "run", ("data",), {"team": "x"}),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    version = first.version
    assert first.created
    assert (version.number, version.rank, version.features) == (1, 8, ("rslora",))
    assert version.target_modules == ("k_proj", "o_proj", "q_proj", "v_proj")
    assert version.state is VersionState.VALIDATED
    assert version.provenance.labels == {"team": "x"}
    assert seen[-1] == (version.size_bytes, version.size_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    again = await client.register(adapters_dir / "json", adapter="json", base_model=smol)
    assert (again.created, again.version.digest, again.revision) == (False, version.digest, first.revision)


async def test_a_dry_run_keeps_no_version(client: RegistryClient, smol: str, adapters_dir: Path) -> None:
    found = await client.register(adapters_dir / "pirate", adapter="pirate", base_model=smol, validate_only=True)
    assert (found.version.number, found.version.rank) == (0, 4)
    with pytest.raises(AdapterNotFound):
        await client.get_adapter("pirate")


async def test_a_folder_that_is_no_adapter_is_refused_with_reasons(
    client: RegistryClient, smol: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused) as caught:
        await client.register(tmp_path, adapter="a", base_model=smol)
    assert len(caught.value.reasons) == 2


async def test_an_adapter_of_another_shape_is_refused_with_reasons(
    client: RegistryClient, base_model: str, adapters_dir: Path
) -> None:
    with pytest.raises(AdapterRefused) as caught:
        await client.register(adapters_dir / "pirate", adapter="a", base_model=base_model)
    assert any("expected" in reason for reason in caught.value.reasons)


async def test_a_version_is_promoted_resolved_and_retired(
    client: RegistryClient, smol: str, adapters_dir: Path
) -> None:
    digests = [
        (await client.register(adapters_dir / name, adapter="style", base_model=smol)).version.digest
        for name in ("pirate", "json")
    ]
    dry = await client.promote("style", 1, validate_only=True)
    assert (dry.changed, dry.before) == (True, ())
    promoted = await client.promote("style", 1, expected_version=0)
    assert (promoted.changed, promoted.alias.alias, promoted.alias.targets[0].version) == (True, "production", 1)
    assert not (await client.promote("style", 1)).changed
    with pytest.raises(AliasMoved):
        await client.promote("style", 2, expected_version=0)
    assert (await client.promote("style", 2, expected_version=1)).before[0].version == 1
    assert (await client.resolve("style")).version.digest == digests[1]
    assert (await client.resolve(digests[0])).version.number == 1
    assert [change.after[0].version for change in await client.list_alias_changes("style")] == [2, 1]
    assert [version.number for version in await client.list_versions("style")] == [2, 1]
    assert [adapter.name for adapter in await client.list_adapters(base_model=smol)] == ["style"]
    with pytest.raises(VersionInUse):
        await client.retire("style", 2)
    assert (await client.retire("style", 1)).state is VersionState.RETIRED
    with pytest.raises(VersionRetired):
        await client.resolve("style:1")
    assert (await client.unretire("style", 1)).state is not VersionState.RETIRED
    with pytest.raises(WrongBaseModel):
        await client.resolve("style", base_model_digest=f"sha256:{'0' * 64}")


async def test_a_blob_comes_back_byte_for_byte(client: RegistryClient, tmp_path: Path, adapters_dir: Path) -> None:
    source = adapters_dir / "json" / "adapter_model.safetensors"
    digest = f"sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}"
    size = source.stat().st_size
    assert await client.upload_blob(source, digest=digest, size_bytes=size)
    assert not await client.upload_blob(source, digest=digest, size_bytes=size)
    seen: list[int] = []
    await client.read_blob(digest, tmp_path / "copy", on_bytes=seen.append)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert seen[-1] == size
    with pytest.raises(BlobNotFound):
        await client.read_blob(f"sha256:{'0' * 64}", tmp_path / "none")
    with pytest.raises(BlobMismatch):
        await client.upload_blob(source, digest=f"sha256:{'0' * 64}", size_bytes=size)
    assert names_in(tmp_path) == ["copy"]


async def test_a_worker_reports_and_is_listed(client: RegistryClient, smol: str) -> None:
    serving = WorkerAdapter("sql", 1, f"sha256:{'0' * 64}", WorkerAdapterState.READY, ("production",), "", 10, 2)
    worker = Worker("w1", "127.0.0.1:1", smol, describe_smol().digest, 1, (serving,))
    assert await client.report_worker(worker, lease_s=60) == (await client.status()).revision
    (found,) = await client.list_workers(base_model=smol)
    assert (found.id, found.state, found.adapters) == ("w1", WorkerState.LIVE, (serving,))
    assert await client.list_workers(base_model="other") == []


async def test_a_watch_gives_a_snapshot_then_changes(client: RegistryClient, smol: str, adapters_dir: Path) -> None:
    await client.register(adapters_dir / "json", adapter="json", base_model=smol)
    await client.promote("json", 1)
    async with aclosing(client.watch()) as stream:
        items, end = await read_snapshot(stream)
        assert {type(item.item) for item in items} >= {Alias, AdapterVersion}
        assert end.store_id == (await client.status()).store_id
        await client.promote("json", 1, alias="canary")
        assert (await next_change(stream)).revision == end.revision + 1


async def test_a_watch_survives_kill_9_of_the_registry(registry_process: Any, adapters_dir: Path) -> None:
    registry_process.start()
    async with RegistryClient(connect(registry_process.address)) as client:
        await client.create_base_model("smol", describe_smol())
        await client.register(adapters_dir / "pirate", adapter="pirate", base_model="smol")
        lost: list[RegistryError | None] = []
        async with aclosing(client.watch(on_connection=lost.append)) as stream:
            _, end = await read_snapshot(stream)
            await asyncio.to_thread(registry_process.end, signal.SIGKILL)
            await asyncio.to_thread(registry_process.start)
            change = asyncio.ensure_future(next_change(stream))
            await client.promote("pirate", 1)
            assert (await change).revision == end.revision + 1
        assert lost[0] is None
        assert any(error is not None and error.code == "UNAVAILABLE" for error in lost)
        assert lost[-1] is None


async def read_snapshot(stream: AsyncIterator[WatchMessage]) -> tuple[list[SnapshotItem], SnapshotEnd]:
    """Everything up to the end of the snapshot."""
    items: list[SnapshotItem] = []
    async for message in stream:
        if isinstance(message, SnapshotEnd):
            return items, message
        assert isinstance(message, SnapshotItem)
        items.append(message)
    raise AssertionError("the watch ended")


async def next_change(stream: AsyncIterator[WatchMessage]) -> Change:
    """The next change; progress is passed over."""
    async for message in stream:
        if isinstance(message, Change):
            return message
    raise AssertionError("the watch ended")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


Handler = Callable[..., Any]


@dataclass
class FakeRegistry(rpcs.RegistryServiceServicer, watch_rpcs.WatchServiceServicer):
    """Answers each call by the next of its script; the last one repeats."""

    script: list[Handler]
    requests: list[Any] = field(default_factory=list)

    def next(self, request: Any) -> Handler:
        self.requests.append(request)
        return self.script[min(len(self.requests), len(self.script)) - 1]

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return await self.next(request)(request)

    async def PromoteAdapterVersion(self, request: Any, context: Any) -> Any:
        return await self.next(request)(request)

    async def FindMissingBlobs(self, request: Any, context: Any) -> Any:
        return pb.FindMissingBlobsResponse(digests=[blob.digest for blob in request.blobs])

    async def UploadBlob(self, request_iterator: Any, context: Any) -> Any:
        return await self.next(None)(request_iterator)

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self.next(request)(request):
            yield message

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self.next(request)(request):
            yield message


@asynccontextmanager
async def fake(
    *script: Handler, deadline_s: float = 5.0, security: ClientSecurity | None = None
) -> AsyncIterator[tuple[FakeRegistry, RegistryClient]]:
    """A client of a registry with a script."""
    servicer = FakeRegistry(list(script))  # type: ignore[abstract]  # the other methods answer UNIMPLEMENTED
    services = [
        Service(
            pb.DESCRIPTOR.services_by_name["RegistryService"], rpcs.add_RegistryServiceServicer_to_server, servicer
        ),
        Service(
            watch_pb.DESCRIPTOR.services_by_name["WatchService"],
            watch_rpcs.add_WatchServiceServicer_to_server,
            servicer,
        ),
    ]
    server = Server(services, listen="127.0.0.1:0", security=Security())
    await server.start()
    try:
        channel = connect(f"127.0.0.1:{server.port}", security=security)
        async with RegistryClient(channel, deadline_s=deadline_s) as client:
            yield servicer, client
    finally:
        await server.drain(0)


def failing(error: RegistryError) -> Handler:
    async def handle(_: Any) -> Any:
        raise error

    return handle


def answering(answer: Any) -> Handler:
    async def handle(_: Any) -> Any:
        return answer

    return handle


async def test_a_call_is_repeated_while_the_registry_is_away() -> None:
    away = failing(StoreUnavailable(retry_after_s=0.001))
    async with fake(away, away, answering(pb.GetStatusResponse(store_id="s", revision=7))) as (servicer, client):
        assert (await client.status()).revision == 7
        assert len(servicer.requests) == 3


async def test_a_call_gives_up_after_some_attempts() -> None:
    async with fake(failing(StoreUnavailable())) as (servicer, client):
        with pytest.raises(StoreUnavailable):
            await client.status()
        assert len(servicer.requests) == retries.MAX_ATTEMPTS


@pytest.mark.parametrize("error", [AdapterNotFound(), AliasMoved(), PermissionDenied()])
async def test_a_refusal_is_not_repeated(error: RegistryError) -> None:
    async with fake(failing(error)) as (servicer, client):
        with pytest.raises(type(error)):
            await client.promote("sql", 1)
        assert len(servicer.requests) == 1


async def test_a_repeated_write_carries_the_same_request_id() -> None:
    alias = resources_pb2.Alias(adapter="sql", alias="production")
    answer = answering(pb.PromoteAdapterVersionResponse(alias=alias, revision=3))
    async with fake(failing(StoreUnavailable()), answer) as (servicer, client):
        await client.promote("sql", 1)
        await client.promote("sql", 1)
        first, repeat, other = (request.request_id for request in servicer.requests)
        assert first == repeat != other


async def test_a_call_that_hangs_ends_at_its_deadline() -> None:
    async def hang(_: Any) -> Any:
        await asyncio.Event().wait()

    async with fake(hang, deadline_s=0.1) as (_, client):
        with pytest.raises(DeadlineExceeded):
            await client.status()


async def test_an_upload_of_a_known_file_is_cut_short(tmp_path: Path) -> None:
    taken: list[Any] = []

    async def know(parts: AsyncIterator[Any]) -> Any:
        async for part in parts:
            taken.append(part)
            break
        return pb.UploadBlobResponse(digest="d", existed=True)

    (tmp_path / "large").write_bytes(bytes(64 * 2**20))
    async with fake(know) as (_, client):
        assert not await client.upload_blob(tmp_path / "large", digest="d", size_bytes=64 * 2**20)
    assert [part.WhichOneof("part") for part in taken] == ["header"]


@pytest.mark.parametrize("security", [ClientSecurity(), ClientSecurity(token="secret")])
async def test_an_upload_that_is_refused_at_once_says_why(tmp_path: Path, security: ClientSecurity) -> None:
    (tmp_path / "large").write_bytes(bytes(8 * 2**20))
    async with fake(failing(BlobTooLarge()), security=security) as (_, client):
        for _ in range(10):
            with pytest.raises(BlobTooLarge):
                await client.upload_blob(tmp_path / "large", digest="d", size_bytes=8 * 2**20)


async def test_an_upload_begins_again_after_a_broken_connection(tmp_path: Path) -> None:
    async def take(parts: AsyncIterator[Any]) -> Any:
        data = b"".join([part.chunk async for part in parts])
        return pb.UploadBlobResponse(digest=hashlib.sha256(data).hexdigest())

    (tmp_path / "file").write_bytes(b"abc" * 2**20)
    async with fake(failing(StoreUnavailable()), take) as (servicer, client):
        assert await client.upload_blob(tmp_path / "file", digest="d", size_bytes=3 * 2**20)
        assert len(servicer.requests) == 2


def sending(*chunks: bytes, then: RegistryError | None = None) -> Handler:
    async def handle(_: Any) -> AsyncIterator[Any]:
        for chunk in chunks:
            yield pb.ReadBlobResponse(chunk=chunk)
        if then is not None:
            raise then

    return handle


async def test_a_download_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    digest = f"sha256:{hashlib.sha256(b'abcdef').hexdigest()}"
    away = StoreUnavailable()
    async with fake(sending(b"ab", b"c", then=away), sending(then=away), sending(b"def")) as (servicer, client):
        await client.read_blob(digest, tmp_path / "file")
        assert [request.offset_bytes for request in servicer.requests] == [0, 3, 3]
    assert (tmp_path / "file").read_bytes() == b"abcdef"


@pytest.mark.parametrize(
    "end", [sending(b"other"), sending(b"ab", then=BlobCorrupted()), sending(then=StoreUnavailable())]
)
async def test_a_download_that_fails_leaves_nothing(tmp_path: Path, end: Handler) -> None:
    async with fake(end) as (_, client):
        with pytest.raises(RegistryError):
            await client.read_blob(f"sha256:{hashlib.sha256(b'abcdef').hexdigest()}", tmp_path / "file")
    assert names_in(tmp_path) == []


async def test_a_download_that_stalls_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stall(_: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(transfers, "STALL_S", 0.1)
    async with fake(sending(b"a", then=StoreUnavailable()), stall) as (_, client):
        with pytest.raises(DeadlineExceeded, match="sent nothing"):
            await client.read_blob(f"sha256:{'0' * 64}", tmp_path / "file")


def watching(*found: WatchMessage, store_id: str = "s", then: RegistryError | None = None) -> Handler:
    async def handle(_: Any) -> AsyncIterator[Any]:
        for message in found:
            yield fleet_messages.write_watch(message, store_id=store_id)
        if then is not None:
            raise then
        await asyncio.Event().wait()

    return handle


def changes(numbers: Iterator[int] | range) -> list[WatchMessage]:
    return [Change(number, ()) for number in numbers]


async def take(stream: AsyncIterator[WatchMessage], count: int) -> list[WatchMessage]:
    found = []
    async for message in stream:
        found.append(message)
        if len(found) == count:
            break
    return found


ITEM = SnapshotItem(Alias("sql", "production", ()))


async def test_a_resumed_watch_equals_an_unbroken_one() -> None:
    away = StoreUnavailable()
    script = (
        watching(ITEM, SnapshotEnd(3), *changes(range(4, 6)), then=away),
        watching(then=away),
        watching(Progress(5), *changes(range(6, 7)), then=away),
        watching(*changes(range(7, 9))),
    )
    async with fake(*script) as (servicer, client), aclosing(client.watch(base_model="b")) as stream:
        found = await take(stream, 8)
        asked = [
            (request.after_revision if request.HasField("after_revision") else None, request.store_id)
            for request in servicer.requests
        ]
        assert all(request.base_model == "b" for request in servicer.requests)
    assert found == [ITEM, SnapshotEnd(3, "s"), *changes(range(4, 6)), Progress(5), *changes(range(6, 9))]
    assert asked == [(None, ""), (5, "s"), (5, "s"), (6, "s")]


async def test_a_snapshot_comes_whole_or_not_at_all() -> None:
    script = (watching(ITEM, ITEM, then=StoreUnavailable()), watching(ITEM, SnapshotEnd(3)))
    async with fake(*script) as (_, client), aclosing(client.watch()) as stream:
        assert await take(stream, 2) == [ITEM, SnapshotEnd(3, "s")]


async def test_a_revision_that_is_gone_leads_to_a_snapshot() -> None:
    script = (watching(then=RevisionCompacted()), watching(ITEM, SnapshotEnd(30), store_id="t"))
    async with (
        fake(*script) as (servicer, client),
        aclosing(client.watch(after_revision=3, store_id="s")) as stream,
    ):
        assert await take(stream, 2) == [ITEM, SnapshotEnd(30, "t")]
        assert servicer.requests[0].after_revision == 3
        assert not servicer.requests[1].HasField("after_revision")
        assert servicer.requests[1].store_id == ""


async def test_a_watch_that_is_not_allowed_ends() -> None:
    async with fake(watching(then=PermissionDenied())) as (servicer, client):
        with pytest.raises(PermissionDenied):
            await take(client.watch(), 1)
        assert len(servicer.requests) == 1


async def test_a_registry_that_is_not_there_is_unavailable() -> None:
    async with RegistryClient(connect("127.0.0.1:1")) as client:
        with pytest.raises(StoreUnavailable):
            await client.status()


def test_pauses_grow_and_respect_what_the_registry_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_BACKOFF_S", 0.2)
    monkeypatch.setattr(retries, "LAST_BACKOFF_S", 5.0)
    assert 0.1 <= retries.backoff_s(0, StoreUnavailable()) <= 0.2
    assert 2.5 <= retries.backoff_s(1000, StoreUnavailable()) <= 5.0
    assert 3.0 <= retries.backoff_s(0, StoreUnavailable(retry_after_s=3.0)) <= 3.0
    assert retries.backoff_s(0, StoreUnavailable(retry_after_s=3600.0)) <= 5.0
