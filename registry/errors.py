"""What the registry may answer instead of a result.

RegistryError
├── InvalidRequest            INVALID_ARGUMENT      a request that can never work
│   ├── InvalidName           INVALID_ARGUMENT
│   ├── InvalidReference      INVALID_ARGUMENT
│   ├── InvalidManifest       INVALID_ARGUMENT
│   ├── InvalidPageToken      INVALID_ARGUMENT
│   ├── InvalidKey            INVALID_ARGUMENT      not a key that can sign
│   ├── SignatureInvalid      INVALID_ARGUMENT      the signature is not one of the manifest by its key
│   └── BlobMismatch          INVALID_ARGUMENT      the bytes are not what the header said
├── Unauthenticated           UNAUTHENTICATED
├── PermissionDenied          PERMISSION_DENIED
├── SourceNotAllowed          PERMISSION_DENIED     the registry may not read the folder
├── BaseModelNotFound         NOT_FOUND
├── AdapterNotFound           NOT_FOUND
├── VersionNotFound           NOT_FOUND
├── AliasNotFound             NOT_FOUND
├── BlobNotFound              NOT_FOUND
├── TokenNotFound             NOT_FOUND
├── BaseModelExists           ALREADY_EXISTS        the name is taken by another digest
├── AliasMoved                ABORTED               the alias does not point at what was expected
├── RequestIdReused           ABORTED               the same id with other content
├── SecretNotKept             ABORTED               a token was made by an earlier call, whose answer had its secret
├── BlobNotUploaded           FAILED_PRECONDITION   a manifest names a file that is not here
├── AdapterRefused            FAILED_PRECONDITION   the artifact is unfit, with every reason
├── WrongBaseModel            FAILED_PRECONDITION
├── VersionRetired            FAILED_PRECONDITION
├── VersionRejected           FAILED_PRECONDITION
├── VersionNotRetired         FAILED_PRECONDITION
├── StateRefused              FAILED_PRECONDITION   the version's state does not lead there
├── VersionInUse              FAILED_PRECONDITION   an alias points at it
├── SignatureRequired         FAILED_PRECONDITION   the alias wants a signature that the version has not
├── NoEarlierTarget           FAILED_PRECONDITION   an alias has nothing to go back to
├── LineageCycle              FAILED_PRECONDITION   a base model would be its own ancestor
├── TokenNotInForce           FAILED_PRECONDITION   it was revoked or has expired
├── ReportUnknown             FAILED_PRECONDITION   a renewal of an account that is not here; send all of it
├── StoreChanged              FAILED_PRECONDITION   the revision belongs to another store
├── DatabaseInUse             FAILED_PRECONDITION   a restore would replace a registry's data
├── DataDirInUse              FAILED_PRECONDITION   another registry process owns the data directory
├── SchemaUnknown             FAILED_PRECONDITION   the database was migrated by a newer release
├── SourceUnreadable          FAILED_PRECONDITION   the folder is not an adapter that can be read
├── StorageUnknown            FAILED_PRECONDITION   the URL is not of a storage that the registry may use
├── BlobTooLarge              RESOURCE_EXHAUSTED
├── StorageFull               RESOURCE_EXHAUSTED
├── OffsetPastEnd             OUT_OF_RANGE
├── RevisionCompacted         OUT_OF_RANGE          take a snapshot
├── RevisionFuture            OUT_OF_RANGE          take a snapshot
├── BlobCorrupted             DATA_LOSS
├── VersionDamaged            DATA_LOSS             what is stored is not what was registered
├── DatabaseFaulty            DATA_LOSS             a check of the database found faults
├── StoreUnavailable          UNAVAILABLE           Postgres cannot be reached; come back
├── Draining                  UNAVAILABLE           the registry is shutting down; come back
├── DeadlineExceeded          DEADLINE_EXCEEDED
├── NotImplementedYet         UNIMPLEMENTED
├── BackupFailed              INTERNAL              pg_dump, pg_restore or psql failed
└── PostgresFailed            UNAVAILABLE           the embedded Postgres does not start
"""

from __future__ import annotations

from typing import ClassVar

from rpc.errors import DomainError


class RegistryError(DomainError):
    """The registry failed."""

    domain: ClassVar[str] = "loraplex.registry"


class InvalidRequest(RegistryError):
    """The request can never work as it is."""

    code, reason = "INVALID_ARGUMENT", "INVALID_REQUEST"


class InvalidName(InvalidRequest):
    """The name is not one that the registry accepts."""

    reason = "INVALID_NAME"


class InvalidReference(InvalidRequest):
    """Expected NAME, NAME@ALIAS, NAME:NUMBER or sha256: and 64 hex digits."""

    reason = "INVALID_REFERENCE"


class InvalidManifest(InvalidRequest):
    """The manifest is not one."""

    reason = "INVALID_MANIFEST"


class InvalidPageToken(InvalidRequest):
    """The page token is not from the previous answer of this method."""

    reason = "INVALID_PAGE_TOKEN"


class BlobMismatch(InvalidRequest):
    """The bytes are not what the header said."""

    reason = "BLOB_MISMATCH"


class InvalidKey(InvalidRequest):
    """This is not a key that can sign."""

    reason = "INVALID_KEY"


class SignatureInvalid(InvalidRequest):
    """The signature is not one of this manifest by its key."""

    reason = "SIGNATURE_INVALID"


class Unauthenticated(RegistryError):
    """The call carries no valid token."""

    code, reason = "UNAUTHENTICATED", "UNAUTHENTICATED"
    is_all_of_its_code = True


class PermissionDenied(RegistryError):
    """The caller may not do this."""

    code, reason = "PERMISSION_DENIED", "PERMISSION_DENIED"
    is_all_of_its_code = True


class BaseModelNotFound(RegistryError):
    """No such base model."""

    code, reason = "NOT_FOUND", "BASE_MODEL_NOT_FOUND"


class AdapterNotFound(RegistryError):
    """No such adapter."""

    code, reason = "NOT_FOUND", "ADAPTER_NOT_FOUND"


class VersionNotFound(RegistryError):
    """No such version."""

    code, reason = "NOT_FOUND", "VERSION_NOT_FOUND"


class AliasNotFound(RegistryError):
    """No such alias."""

    code, reason = "NOT_FOUND", "ALIAS_NOT_FOUND"


class BlobNotFound(RegistryError):
    """No such blob."""

    code, reason = "NOT_FOUND", "BLOB_NOT_FOUND"


class TokenNotFound(RegistryError):
    """No such token."""

    code, reason = "NOT_FOUND", "TOKEN_NOT_FOUND"


class BaseModelExists(RegistryError):
    """The name is taken by a base model with another digest."""

    code, reason = "ALREADY_EXISTS", "BASE_MODEL_EXISTS"


class AliasMoved(RegistryError):
    """The alias does not point at the expected version."""

    code, reason = "ABORTED", "ALIAS_MOVED"


class RequestIdReused(RegistryError):
    """The request id was used before with other content."""

    code, reason = "ABORTED", "REQUEST_ID_REUSED"


class SecretNotKept(RegistryError):
    """The token was made by an earlier call with this request id, and only its answer had the secret."""

    code, reason = "ABORTED", "SECRET_NOT_KEPT"


class BlobNotUploaded(RegistryError):
    """The manifest names a file that was not uploaded."""

    code, reason = "FAILED_PRECONDITION", "BLOB_NOT_UPLOADED"


class AdapterRefused(RegistryError):
    """The artifact is not an adapter that can be served on its base model."""

    code, reason = "FAILED_PRECONDITION", "ADAPTER_REFUSED"


class WrongBaseModel(RegistryError):
    """The adapter is for another base model."""

    code, reason = "FAILED_PRECONDITION", "WRONG_BASE_MODEL"


class VersionRetired(RegistryError):
    """The version was retired."""

    code, reason = "FAILED_PRECONDITION", "VERSION_RETIRED"


class VersionRejected(RegistryError):
    """The version was checked and refused."""

    code, reason = "FAILED_PRECONDITION", "VERSION_REJECTED"


class VersionNotRetired(RegistryError):
    """The version is not retired."""

    code, reason = "FAILED_PRECONDITION", "VERSION_NOT_RETIRED"


class StateRefused(RegistryError):
    """The version's state does not lead there."""

    code, reason = "FAILED_PRECONDITION", "STATE_REFUSED"


class VersionInUse(RegistryError):
    """An alias points at the version."""

    code, reason = "FAILED_PRECONDITION", "VERSION_IN_USE"


class SignatureRequired(RegistryError):
    """The alias wants a signature that the version does not have."""

    code, reason = "FAILED_PRECONDITION", "SIGNATURE_REQUIRED"


class NoEarlierTarget(RegistryError):
    """The alias never pointed at anything else."""

    code, reason = "FAILED_PRECONDITION", "NO_EARLIER_TARGET"


class LineageCycle(RegistryError):
    """The base model would be its own ancestor."""

    code, reason = "FAILED_PRECONDITION", "LINEAGE_CYCLE"


class TokenNotInForce(RegistryError):
    """The token was revoked or has expired."""

    code, reason = "FAILED_PRECONDITION", "TOKEN_NOT_IN_FORCE"


class ReportUnknown(RegistryError):
    """The registry does not have what the worker would renew."""

    code, reason = "FAILED_PRECONDITION", "REPORT_UNKNOWN"


class StoreChanged(RegistryError):
    """The revision belongs to another store; take a snapshot."""

    code, reason = "FAILED_PRECONDITION", "STORE_CHANGED"


class DatabaseInUse(RegistryError):
    """The database has a registry's data, which a restore would replace."""

    code, reason = "FAILED_PRECONDITION", "DATABASE_IN_USE"


class DataDirInUse(RegistryError):
    """Another registry process owns the data directory."""

    code, reason = "FAILED_PRECONDITION", "DATA_DIR_IN_USE"


class SchemaUnknown(RegistryError):
    """The database was migrated by a newer release."""

    code, reason = "FAILED_PRECONDITION", "SCHEMA_UNKNOWN"


class SourceNotAllowed(RegistryError):
    """The registry may not read this folder."""

    code, reason = "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"


class SourceUnreadable(RegistryError):
    """The registry cannot read this folder."""

    code, reason = "FAILED_PRECONDITION", "SOURCE_UNREADABLE"


class StorageUnknown(RegistryError):
    """The URL is not of a storage that the registry may use."""

    code, reason = "FAILED_PRECONDITION", "STORAGE_UNKNOWN"


class BlobTooLarge(RegistryError):
    """The file is larger than the registry accepts."""

    code, reason = "RESOURCE_EXHAUSTED", "BLOB_TOO_LARGE"


class StorageFull(RegistryError):
    """The registry has no room left."""

    code, reason = "RESOURCE_EXHAUSTED", "STORAGE_FULL"


class OffsetPastEnd(RegistryError):
    """The offset is past the end of the blob."""

    code, reason = "OUT_OF_RANGE", "OFFSET_PAST_END"


class RevisionCompacted(RegistryError):
    """The events after this revision are gone; take a snapshot."""

    code, reason = "OUT_OF_RANGE", "REVISION_COMPACTED"


class RevisionFuture(RegistryError):
    """The registry has not reached this revision; take a snapshot."""

    code, reason = "OUT_OF_RANGE", "REVISION_FUTURE"


class BlobCorrupted(RegistryError):
    """The stored bytes no longer have their digest."""

    code, reason = "DATA_LOSS", "BLOB_CORRUPTED"


class VersionDamaged(RegistryError):
    """What is stored of the version is not what was registered."""

    code, reason = "DATA_LOSS", "VERSION_DAMAGED"


class DatabaseFaulty(RegistryError):
    """The database does not hold together."""

    code, reason = "DATA_LOSS", "DATABASE_FAULTY"


class BackupFailed(RegistryError):
    """A program of Postgres failed."""

    code, reason = "INTERNAL", "BACKUP_FAILED"


class StoreUnavailable(RegistryError):
    """Postgres cannot be reached."""

    code, reason = "UNAVAILABLE", "STORE_UNAVAILABLE"
    is_all_of_its_code = True


class Draining(RegistryError):
    """The registry is shutting down."""

    code, reason = "UNAVAILABLE", "DRAINING"


class DeadlineExceeded(RegistryError):
    """The registry did not answer in time."""

    code, reason = "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"
    is_all_of_its_code = True


class NotImplementedYet(RegistryError):
    """This is part of the contract and not of this release."""

    code, reason = "UNIMPLEMENTED", "NOT_IMPLEMENTED"
    is_all_of_its_code = True


class PostgresFailed(RegistryError):
    """The embedded Postgres does not start."""

    code, reason = "UNAVAILABLE", "POSTGRES_FAILED"
