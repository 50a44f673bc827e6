"""Resources survive being stored."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from adapter.manifest import Manifest, ManifestFile
from registry.documents import decode, encode
from registry.resources import (
    AdapterVersion,
    Alias,
    AliasChanged,
    AliasTarget,
    Event,
    Provenance,
    VersionRetired,
    VersionState,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
VERSION = AdapterVersion(
    adapter="sql",
    number=3,
    digest="sha256:d",
    base_model="base",
    base_model_digest="sha256:b",
    manifest=Manifest((ManifestFile("a", 1, "sha256:" + 64 * "0"),)),
    rank=4,
    alpha=8,
    target_modules=("q_proj",),
    features=(),
    state=VersionState.RETIRED,
    size_bytes=2**40,
    provenance=Provenance("", "", ("s3://é",), {"a": "b"}),
    create_time=NOW,
)


def test_a_resource_comes_back_from_its_document():
    for resource in (
        VERSION,
        Event(7, NOW, VersionRetired(VERSION)),
        Event(
            7, NOW, AliasChanged(Alias("sql", "production", (AliasTarget(3, "sha256:d"),), False, 7, NOW), (VERSION,))
        ),
        Alias("sql", "production", ()),
    ):
        assert decode(type(resource), json.loads(json.dumps(encode(resource)))) == resource


def test_documents_of_older_and_newer_releases_are_read():
    document = encode(AliasTarget(3, "sha256:d"))
    del document["weight"]
    document["something_new"] = 1
    assert decode(AliasTarget, document) == AliasTarget(3, "sha256:d")


def test_a_tuple_of_resources_comes_back():
    targets = (AliasTarget(3, "sha256:d"), AliasTarget(4, "sha256:e", 5000, shadow=True))
    assert decode(tuple[AliasTarget, ...], encode(targets)) == targets
