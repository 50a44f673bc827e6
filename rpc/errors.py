"""The root of both error trees; pure Python, so that code which may not know gRPC can raise it.

A package draws its own tree in its `errors.py`. Each leaf names its gRPC status code and a stable reason; `rpc.status`
turns it into a status with google.rpc details on the server and back into the same class on the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class DomainError(Exception):
    """An error that a caller is meant to see.

    `code` is the name of a gRPC status code, `reason` a stable SCREAMING_SNAKE word (google.rpc.ErrorInfo); an error
    that came over the wire and has no class here keeps those of its status. `is_all_of_its_code` says that the class is
    what its code alone means, and so what a status without a reason that is known here becomes. The class's docstring
    is the default message. `metadata` are facts for programs, `reasons` many findings about one thing
    (google.rpc.BadRequest), `field` the request field at fault, `retry_after_s` asks the caller to come back.
    """

    code: str = "INTERNAL"
    reason: str = "INTERNAL"
    is_all_of_its_code: ClassVar[bool] = False
    domain: ClassVar[str] = "loraplex"

    def __init__(
        self,
        message: str | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        reasons: tuple[str, ...] = (),
        field: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.metadata = dict(metadata or {})
        self.reasons = reasons
        self.field = field
        self.retry_after_s = retry_after_s
