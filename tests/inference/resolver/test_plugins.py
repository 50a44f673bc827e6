"""A resolver of somebody else's package, installed as packages are: a module and its metadata on sys.path."""

from __future__ import annotations

import sys

import pytest

from adapter.manifest import manifest_of_adapter
from adapter.names import Reference
from inference.errors import InvalidRequest
from inference.resolver.chain import ResolverChain
from inference.resolver.plugins import open_plugins

MODULE = '''
from pathlib import Path

from adapter.manifest import manifest_of_adapter
from inference.errors import AdapterNotFound
from inference.resolver import KnownVersion, Version


class VaultResolver:
    """Has one adapter, in the folder that the operator gave."""

    def __init__(self, context):
        self.folder = Path(context.argument)
        self.context = context
        manifest = manifest_of_adapter(self.folder)
        self.version = Version("vaulted", 0, manifest.digest, context.base_model_digest, manifest)

    async def resolve(self, reference, *, request_key=""):
        if reference.name != "vaulted":
            raise AdapterNotFound(f"no {reference} in the vault")
        return self.version

    async def fetch(self, version):
        return self.folder

    def forget(self, version):
        pass

    def known(self):
        return [KnownVersion("vaulted", self.version)]


def explode(context):
    raise RuntimeError("no key to the vault")
'''


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    metadata = site / "some_vault-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "some_vault.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: some-vault\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[loraplex.resolvers]\nvault = some_vault:VaultResolver\nbroken = some_vault:explode\n"
    )
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("some_vault", None)


async def test_an_installed_resolver_serves_when_the_operator_names_it(write_files, tmp_path, base):
    folder = write_files(tmp_path / "sql")
    found = open_plugins([f"vault={folder}"], **base, folder=tmp_path / "state")
    chain = ResolverChain(found, base_model_digest=base["base_model_digest"])
    version = await chain.resolve(Reference.parse("vaulted"))
    assert (version.digest, version.source) == (manifest_of_adapter(folder).digest, "vault")
    assert await chain.fetch(version) == folder
    (resolver,) = found.values()
    assert resolver.context.folder.is_dir()


def test_what_is_only_installed_does_nothing(tmp_path, base):
    assert open_plugins([], **base, folder=tmp_path / "state") == {}
    assert "some_vault" not in sys.modules


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["nobody"], r"expected one of the installed resolvers \(.*vault.*\), found 0 of the name nobody"),
        (["broken"], "cannot be opened: RuntimeError: no key to the vault"),
        (["vault=/nowhere"], "cannot be opened"),
    ],
)
def test_one_that_is_not_there_or_does_not_open_is_refused_at_the_start(items, message, tmp_path, base):
    with pytest.raises(InvalidRequest, match=message):
        open_plugins(items, **base, folder=tmp_path / "state")


def test_a_resolver_is_named_once(write_files, tmp_path, base):
    item = f"vault={write_files(tmp_path / 'sql')}"
    with pytest.raises(InvalidRequest, match="found vault again"):
        open_plugins([item, item], **base, folder=tmp_path / "state")
