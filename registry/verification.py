"""Whether what is stored of a version is still what was registered. It changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from registry.artifacts import check_artifact
from registry.blobs import BlobStore
from registry.errors import AdapterRefused, BlobCorrupted, BlobNotUploaded, InvalidManifest, SignatureInvalid
from registry.resources import AdapterVersion
from registry.signatures import check_signature


async def find_problems(
    blobs: BlobStore, version: AdapterVersion, shapes: Mapping[str, tuple[int, int]]
) -> tuple[str, ...]:
    """Sentences; none when every file has its digest and the version fits a base model of these shapes."""
    damaged = set(await blobs.missing((file.digest, file.size_bytes) for file in version.manifest.files))
    problems = tuple(
        f"{file.path}: the file is gone or its bytes no longer have the digest {file.digest}"
        for file in version.manifest.files
        if file.digest in damaged
    )
    if problems:
        return problems
    if version.signature is not None:
        try:
            check_signature(version.manifest, version.signature)
        except SignatureInvalid as error:
            return (f"the signature does not hold: {error}",)
    try:
        artifact = await check_artifact(blobs, version.manifest, shapes)
    except (AdapterRefused, BlobCorrupted, BlobNotUploaded, InvalidManifest) as error:
        return error.reasons or (str(error),)
    recorded = (version.rank, version.target_modules, version.features)
    found = (artifact.rank, artifact.target_modules, artifact.features)
    if recorded != found:
        return (f"expected the recorded rank, targets and features {recorded}, found {found}",)
    return ()
