"""The contract of RegistryService, over real gRPC on a real Postgres."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import resources_pb2 as resources
from registry import messages
from registry.errors import (
    AdapterNotFound,
    AliasMoved,
    AliasNotFound,
    BaseModelExists,
    BaseModelNotFound,
    InvalidManifest,
    InvalidName,
    InvalidPageToken,
    InvalidReference,
    InvalidRequest,
    NoEarlierTarget,
    NotImplementedYet,
    RequestIdReused,
    VersionInUse,
    VersionNotFound,
    VersionNotRetired,
    VersionRetired,
    WrongBaseModel,
)
from registry.resources import VersionState


@pytest.fixture
async def versions(client, base_model, new_adapter) -> list[Any]:
    """sql:1 to sql:3, with nothing promoted; the registry is at revision 4."""
    found = [await client.register(new_adapter(seed), adapter="sql", base_model=base_model) for seed in range(3)]
    return [one.version for one in found]


def base_model_request(description: Any, **changes: Any) -> pb.CreateBaseModelRequest:
    request = pb.CreateBaseModelRequest(
        name="base",
        manifest=messages.write_manifest(description.manifest),
        architecture=description.architecture,
        modules=[
            resources.ModuleShape(name=name, out_features=rows, in_features=columns)
            for name, (rows, columns) in description.modules.items()
        ],
    )
    for field, value in changes.items():
        request.ClearField(field)
        if isinstance(value, list):
            getattr(request, field).extend(value)
        elif isinstance(value, str):
            setattr(request, field, value)
        else:
            getattr(request, field).CopyFrom(value)
    return request


class TestBaseModels:
    async def test_a_base_model_comes_back_as_it_was_given_with_digests_that_the_registry_took(
        self, client, new_base_model
    ):
        description = new_base_model(0)
        created = await client.create_base_model("base", description)
        assert (created.created, created.revision) == (True, 1)
        found = await client.get_base_model("base")
        assert found == created.base_model
        assert found.digest == description.manifest.digest
        assert (found.config_digest, found.weights_digest) == (description.config_digest, description.weights_digest)
        assert found.tokenizer_digest == ""
        assert {one.name: (one.out_features, one.in_features) for one in found.modules} == description.modules
        assert [one.name for one in found.modules] == sorted(description.modules)

    async def test_the_same_base_model_again_is_the_one_already_there(self, client, new_base_model):
        first = await client.create_base_model("base", new_base_model(0))
        second = await client.create_base_model("base", new_base_model(0))
        assert (second.created, second.revision) == (False, 1)
        assert second.base_model == first.base_model

    async def test_a_name_taken_by_another_digest_is_refused(self, client, new_base_model):
        await client.create_base_model("base", new_base_model(0))
        with pytest.raises(BaseModelExists, match=new_base_model(0).digest):
            await client.create_base_model("base", new_base_model(1))

    async def test_parents_are_kept_in_their_order(self, registry_server, new_base_model):
        parents = [
            resources.BaseModelParent(base_model="Org/Model", relation=resources.BASE_MODEL_RELATION_FINETUNE),
            resources.BaseModelParent(
                base_model="a", relation=resources.BASE_MODEL_RELATION_ADAPTER_MERGE, adapter_version="sql:3"
            ),
        ]
        request = base_model_request(new_base_model(0), parents=parents)
        await registry_server.ask(registry_server.stub.CreateBaseModel, request)
        answer = await registry_server.ask(registry_server.stub.GetBaseModel, pb.GetBaseModelRequest(name="base"))
        assert list(answer.base_model.parents) == parents

    async def test_a_bad_base_model_is_refused_and_nothing_is_stored(self, registry_server, new_base_model):
        shape = resources.ModuleShape(name="q", out_features=1, in_features=1)
        file = resources.ManifestFile(path="x", digest="sha256:" + 64 * "0")
        outside = resources.ManifestFile(path="../x", digest="sha256:" + 64 * "0")
        parent = resources.BaseModelParent
        before = await registry_server.state()
        for changes, error in (
            ({"name": "a/b"}, InvalidName),
            ({"name": ".."}, InvalidName),
            ({"name": ""}, InvalidName),
            ({"name": "a" * 129}, InvalidName),
            ({"architecture": ""}, InvalidRequest),
            ({"architecture": "a\0b"}, InvalidRequest),
            ({"modules": []}, InvalidRequest),
            ({"modules": [resources.ModuleShape(name="q", out_features=0, in_features=1)]}, InvalidRequest),
            ({"modules": [shape, shape]}, InvalidRequest),
            ({"manifest": resources.Manifest()}, InvalidManifest),
            ({"manifest": resources.Manifest(files=[outside])}, InvalidManifest),
            ({"manifest": resources.Manifest(files=[file])}, InvalidManifest),
            ({"parents": [parent(base_model="a")]}, InvalidRequest),
            ({"parents": [parent(base_model="a", relation=1, adapter_version="sql:1")]}, InvalidRequest),
            ({"parents": [parent(base_model="a", relation=4, adapter_version="sql@x")]}, InvalidReference),
            ({"request_id": "x" * 129}, InvalidRequest),
        ):
            with pytest.raises(error):
                await registry_server.ask(
                    registry_server.stub.CreateBaseModel, base_model_request(new_base_model(0), **changes)
                )
            assert await registry_server.state() == before, changes

    async def test_an_unknown_base_model_is_not_found(self, client):
        with pytest.raises(BaseModelNotFound, match="nothing"):
            await client.get_base_model("nothing")


class TestPages:
    async def test_pages_hold_every_name_once_in_the_order_of_bytes(self, registry_server, new_base_model):
        names = ["b", "B", "a-b", "a.b", "a_b", "ab", "A"]
        for name in names:
            await registry_server.client.create_base_model(name, new_base_model(0))
        found, token = [], ""
        while True:
            answer = await registry_server.ask(
                registry_server.stub.ListBaseModels, pb.ListBaseModelsRequest(page_size=2, page_token=token)
            )
            assert len(answer.base_models) <= 2
            assert not any(one.modules for one in answer.base_models)
            found += [one.name for one in answer.base_models]
            token = answer.next_page_token
            if not token:
                break
        assert found == sorted(names)

    async def test_a_bad_page_token_is_refused(self, registry_server):
        stub = registry_server.stub
        for token in ("x", "WyJhIl0=", "bm90aGluZw==", "[1]", "é"):
            for method, request in (
                (stub.ListBaseModels, pb.ListBaseModelsRequest(page_token=token)),
                (stub.ListAdapters, pb.ListAdaptersRequest(page_token=token)),
                (stub.ListAdapterVersions, pb.ListAdapterVersionsRequest(page_token=token)),
                (stub.ListAliasChanges, pb.ListAliasChangesRequest(page_token=token)),
                (stub.ListAuditEntries, pb.ListAuditEntriesRequest(page_token=token)),
            ):
                with pytest.raises(InvalidPageToken):
                    await registry_server.ask(method, request)

    async def test_a_page_token_is_good_only_for_the_list_that_it_came_from(self, registry_server, versions):
        stub = registry_server.stub
        answer = await registry_server.ask(
            stub.ListAdapterVersions, pb.ListAdapterVersionsRequest(adapter="sql", page_size=1)
        )
        assert [one.number for one in answer.versions] == [3]
        with pytest.raises(InvalidPageToken):
            await registry_server.ask(
                stub.ListAliasChanges, pb.ListAliasChangesRequest(adapter="sql", page_token=answer.next_page_token)
            )
        rest = await registry_server.ask(
            stub.ListAdapterVersions, pb.ListAdapterVersionsRequest(adapter="sql", page_token=answer.next_page_token)
        )
        assert [one.number for one in rest.versions] == [2, 1]


class TestPromotion:
    async def test_a_promotion_creates_the_alias_and_says_what_was_before(self, client, versions):
        moved = await client.promote("sql", 1)
        assert (moved.before, moved.revision, moved.changed) == ((), 5, True)
        assert (moved.alias.alias, moved.alias.targets[0].version) == ("production", 1)
        moved = await client.promote("sql", 2)
        assert moved.before[0].version == 1
        assert moved.alias.targets[0].digest == versions[1].digest
        assert (await client.get_adapter("sql")).aliases == (moved.alias,)
        assert (await client.get_version("sql", 2)).aliases == ("production",)

    async def test_promoting_what_is_promoted_changes_nothing(self, registry_server, client, versions):
        first = await client.promote("sql", 1)
        before = await registry_server.ask(registry_server.stub.GetStatus, pb.GetStatusRequest())
        again = await client.promote("sql", 1)
        assert (again.changed, again.revision, again.alias) == (False, first.revision, first.alias)
        assert await registry_server.ask(registry_server.stub.GetStatus, pb.GetStatusRequest()) == before

    async def test_the_expected_version_is_compared(self, client, versions):
        with pytest.raises(AliasMoved, match="does not exist"):
            await client.promote("sql", 1, expected_version=1)
        await client.promote("sql", 1, expected_version=0)
        with pytest.raises(AliasMoved, match="points at 1"):
            await client.promote("sql", 2, expected_version=0)
        with pytest.raises(AliasMoved, match="points at 1"):
            await client.promote("sql", 2, expected_version=3)
        assert (await client.promote("sql", 2, expected_version=1)).alias.targets[0].version == 2

    async def test_a_dry_run_says_what_would_change_and_changes_nothing(self, registry_server, client, versions):
        await client.promote("sql", 1)
        before = await registry_server.state()
        moved = await client.promote("sql", 2, expected_version=1, validate_only=True)
        assert (moved.changed, moved.revision, moved.alias.revision) == (True, 5, 0)
        assert (moved.before[0].version, moved.alias.targets[0].version) == (1, 2)
        with pytest.raises(AliasMoved):
            await client.promote("sql", 2, expected_version=3, validate_only=True)
        assert await registry_server.state() == before

    async def test_a_bad_promotion_is_refused_and_nothing_is_stored(self, registry_server, versions):
        before = await registry_server.state()
        for changes, error in (
            ({"adapter": "nothing"}, AdapterNotFound),
            ({"adapter": "../sql"}, AdapterNotFound),
            ({"version": 9}, VersionNotFound),
            ({"version": 0}, VersionNotFound),
            ({"version": 2**32 - 1}, VersionNotFound),
            ({"alias": "a/b"}, InvalidName),
            ({"canary_weight": 10_001}, InvalidRequest),
            ({"canary_weight": 1000}, AliasNotFound),
            ({"shadow": True}, NotImplementedYet),
            ({"message": "a\0b"}, InvalidRequest),
            ({"adapter": "a\0b"}, InvalidRequest),
        ):
            request = pb.PromoteAdapterVersionRequest(**{"adapter": "sql", "version": 1, **changes})
            with pytest.raises(error):
                await registry_server.ask(registry_server.stub.PromoteAdapterVersion, request)
            assert await registry_server.state() == before, changes

    async def test_a_repeat_with_the_same_request_id_returns_the_first_answer(self, registry_server, client, versions):
        stub = registry_server.stub
        request = pb.PromoteAdapterVersionRequest(adapter="sql", version=1, expected_version=0, request_id="one")
        first = await registry_server.ask(stub.PromoteAdapterVersion, request)
        await client.promote("sql", 2)
        assert await registry_server.ask(stub.PromoteAdapterVersion, request) == first
        assert (await client.resolve("sql")).version.number == 2

    async def test_a_request_id_with_other_content_is_refused(self, registry_server, versions):
        stub = registry_server.stub
        request = pb.PromoteAdapterVersionRequest(adapter="sql", version=1, request_id="one")
        await registry_server.ask(stub.PromoteAdapterVersion, request)
        request.version = 2
        with pytest.raises(RequestIdReused):
            await registry_server.ask(stub.PromoteAdapterVersion, request)
        with pytest.raises(RequestIdReused):
            await registry_server.ask(stub.RollbackAlias, pb.RollbackAliasRequest(adapter="sql", request_id="one"))

    async def test_a_refused_request_does_not_use_up_its_id(self, registry_server, client, versions):
        stub = registry_server.stub
        request = pb.PromoteAdapterVersionRequest(adapter="sql", version=2, expected_version=1, request_id="one")
        with pytest.raises(AliasMoved):
            await registry_server.ask(stub.PromoteAdapterVersion, request)
        await client.promote("sql", 1)
        assert (await registry_server.ask(stub.PromoteAdapterVersion, request)).changed


class TestRollback:
    async def test_a_rollback_goes_back_to_before_the_last_change(self, registry_server, client, versions):
        stub = registry_server.stub
        for number in (1, 3, 2):
            await client.promote("sql", number)
        answer = await registry_server.ask(stub.RollbackAlias, pb.RollbackAliasRequest(adapter="sql"))
        assert (answer.before[0].version, answer.alias.targets[0].version) == (2, 3)
        answer = await registry_server.ask(stub.RollbackAlias, pb.RollbackAliasRequest(adapter="sql"))
        assert answer.alias.targets[0].version == 2

    async def test_a_rollback_that_cannot_be_is_refused(self, registry_server, client, versions):
        stub = registry_server.stub
        for request, error in (
            (pb.RollbackAliasRequest(adapter="nothing"), AdapterNotFound),
            (pb.RollbackAliasRequest(adapter="sql"), AliasNotFound),
        ):
            with pytest.raises(error):
                await registry_server.ask(stub.RollbackAlias, request)
        await client.promote("sql", 1)
        with pytest.raises(NoEarlierTarget):
            await registry_server.ask(stub.RollbackAlias, pb.RollbackAliasRequest(adapter="sql"))
        await client.promote("sql", 2)
        with pytest.raises(AliasMoved):
            await registry_server.ask(stub.RollbackAlias, pb.RollbackAliasRequest(adapter="sql", expected_version=1))
        await client.retire("sql", 1)
        with pytest.raises(VersionRetired):
            await registry_server.ask(stub.RollbackAlias, pb.RollbackAliasRequest(adapter="sql"))
        assert (await client.resolve("sql")).version.number == 2

    async def test_the_history_keeps_every_change_newest_first(self, client, versions):
        for number in (1, 3, 2):
            await client.promote("sql", number, message=f"to {number}")
        changes = await client.list_alias_changes("sql")
        assert [one.message for one in changes] == ["to 2", "to 3", "to 1"]
        assert [[target.version for target in one.before] for one in changes] == [[3], [1], []]
        assert [one.revision for one in changes] == [7, 6, 5]
        assert {one.actor for one in changes} == {"anonymous"}
        with pytest.raises(AliasNotFound):
            await client.list_alias_changes("sql", alias="canary")


class TestRetirement:
    async def test_a_retired_version_is_neither_resolved_nor_promoted_until_it_is_back(self, client, versions):
        retired = await client.retire("sql", 1, message="bad data")
        assert retired.state == VersionState.RETIRED
        assert (await client.get_version("sql", 1)) == retired
        for call in (client.resolve("sql:1"), client.resolve(versions[0].digest), client.promote("sql", 1)):
            with pytest.raises(VersionRetired):
                await call
        back = await client.unretire("sql", 1)
        assert back.state == VersionState.VALIDATED
        assert (await client.resolve("sql:1")).version.number == 1

    async def test_retiring_twice_is_harmless_and_unretiring_twice_is_not(self, client, versions):
        await client.retire("sql", 1)
        revision = (await client.status()).revision
        await client.retire("sql", 1)
        assert (await client.status()).revision == revision
        await client.unretire("sql", 1)
        with pytest.raises(VersionNotRetired):
            await client.unretire("sql", 1)

    async def test_a_version_in_use_is_retired_only_by_force_and_then_its_alias_is_an_error(
        self, registry_server, client, versions
    ):
        await client.promote("sql", 1)
        await client.promote("sql", 1, alias="canary")
        before = await registry_server.state()
        with pytest.raises(VersionInUse, match="sql@canary, sql@production"):
            await client.retire("sql", 1)
        assert await registry_server.state() == before
        assert (await client.retire("sql", 1, force=True)).aliases == ("canary", "production")
        with pytest.raises(VersionRetired):
            await client.resolve("sql")

    async def test_what_is_not_there_cannot_be_retired(self, client, versions):
        for adapter, number, error in (("nothing", 1, AdapterNotFound), ("sql", 9, VersionNotFound)):
            with pytest.raises(error):
                await client.retire(adapter, number)
            with pytest.raises(error):
                await client.unretire(adapter, number)


class TestResolution:
    async def test_every_form_of_reference_means_its_version(self, client, versions):
        await client.promote("sql", 2)
        await client.promote("sql", 3, alias="canary")
        for reference, number in (
            ("sql", 2),
            ("sql@production", 2),
            ("sql@canary", 3),
            ("sql:1", 1),
            (versions[0].digest, 1),
        ):
            found = await client.resolve(reference, base_model_digest=versions[0].base_model_digest)
            assert (found.version.number, found.revision) == (number, 6)

    async def test_what_is_not_there_is_not_found_by_its_kind(self, client, versions):
        for reference, error in (
            ("nothing", AdapterNotFound),
            ("nothing:1", AdapterNotFound),
            ("sql", AliasNotFound),
            ("sql@canary", AliasNotFound),
            ("sql:9", VersionNotFound),
            ("sha256:" + 64 * "0", VersionNotFound),
        ):
            with pytest.raises(error):
                await client.resolve(reference)

    async def test_what_is_not_a_reference_is_refused(self, client):
        for reference in ("", "a/b", "../a", "sql:", "sql:x", "sql:0", "sql@", "sha256:abc", "a:1:2"):
            with pytest.raises(InvalidReference):
                await client.resolve(reference)

    async def test_an_adapter_for_another_base_model_is_refused(self, client, versions):
        await client.promote("sql", 1)
        for reference in ("sql", "sql:1", versions[0].digest):
            with pytest.raises(WrongBaseModel, match=versions[0].base_model_digest):
                await client.resolve(reference, base_model_digest="sha256:" + 64 * "0")

    async def test_a_digest_under_two_names_means_the_one_for_the_callers_base_model(
        self, client, versions, new_base_model, new_adapter
    ):
        other = await client.create_base_model("other", new_base_model(1))
        await client.register(new_adapter(0), adapter="twin", base_model="other")
        found = await client.resolve(versions[0].digest, base_model_digest=other.base_model.digest)
        assert found.version.adapter == "twin"
        await client.retire("sql", 1)
        assert (await client.resolve(versions[0].digest)).version.adapter == "twin"


class TestAudit:
    async def test_every_committed_write_is_in_the_audit_log_with_old_and_new_value(
        self, registry_server, client, versions
    ):
        await client.promote("sql", 1)
        await client.promote("sql", 2)
        await client.retire("sql", 3)
        answer = await registry_server.ask(registry_server.stub.ListAuditEntries, pb.ListAuditEntriesRequest())
        assert [(one.revision, one.action, one.resource) for one in answer.entries] == [
            (7, "RetireAdapterVersion", "sql:3"),
            (6, "PromoteAdapterVersion", "sql@production"),
            (5, "PromoteAdapterVersion", "sql@production"),
            (4, "RegisterAdapterVersion", "sql:3"),
            (3, "RegisterAdapterVersion", "sql:2"),
            (2, "RegisterAdapterVersion", "sql:1"),
            (1, "CreateBaseModel", "base"),
        ]
        promotion = answer.entries[1]
        assert (json.loads(promotion.before)[0]["version"], json.loads(promotion.after)[0]["version"]) == (1, 2)
        assert (answer.entries[2].before, promotion.actor) == ("", "anonymous")
        assert promotion.request_id

    async def test_the_audit_log_is_read_by_adapter_and_actor(self, registry_server, client, versions):
        stub = registry_server.stub
        answer = await registry_server.ask(
            stub.ListAuditEntries, pb.ListAuditEntriesRequest(adapter="sql", page_size=2)
        )
        assert [one.revision for one in answer.entries] == [4, 3]
        token = answer.next_page_token
        rest = await registry_server.ask(
            stub.ListAuditEntries, pb.ListAuditEntriesRequest(adapter="sql", page_token=token)
        )
        assert [one.revision for one in rest.entries] == [2]
        nobody = await registry_server.ask(stub.ListAuditEntries, pb.ListAuditEntriesRequest(actor="nobody"))
        assert not nobody.entries


async def test_what_is_not_of_this_release_says_so(registry_server):
    stub = registry_server.stub
    with pytest.raises(NotImplementedYet):
        await registry_server.ask(stub.PromoteAdapterVersion, pb.PromoteAdapterVersionRequest(shadow=True))


async def test_the_status_names_store_and_revision(client, versions):
    status = await client.status()
    assert (status.revision, status.compacted_revision) == (4, 0)
    assert status.store_id
    assert status.server_version
