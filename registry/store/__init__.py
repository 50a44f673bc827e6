"""All that the registry keeps in Postgres, by subject. Knows no protobuf, no gRPC and no files."""

from __future__ import annotations

from registry.store.adapters import Adapters
from registry.store.aliases import Aliases
from registry.store.audit import Audit
from registry.store.base_models import BaseModels
from registry.store.blob_uses import BlobUses
from registry.store.changes import Changes
from registry.store.compaction import Compaction
from registry.store.database import Database
from registry.store.lineage import Lineages
from registry.store.protection import Protection
from registry.store.references import References
from registry.store.signing import Signing
from registry.store.tokens import Tokens
from registry.store.versions import Versions
from registry.store.workers import Workers


class Store:
    """The subjects of one database."""

    def __init__(self, database: Database) -> None:
        self.base_models = BaseModels(database)
        self.adapters = Adapters(database)
        self.versions = Versions(database)
        self.aliases = Aliases(database)
        self.references = References(database)
        self.blob_uses = BlobUses(database)
        self.changes = Changes(database)
        self.compaction = Compaction(database)
        self.signing = Signing(database)
        self.workers = Workers(database)
        self.audit = Audit(database)
        self.lineages = Lineages(database)
        self.tokens = Tokens(database)
        self.protection = Protection(database)
