"""What a worker may answer instead of tokens.

InferenceError
├── InvalidRequest            INVALID_ARGUMENT      a prompt or parameter that can never work
│   ├── PromptTooLong         INVALID_ARGUMENT
│   └── GuideRefused          INVALID_ARGUMENT      a form that is not understood, too large, or that nothing has
├── GuideTooComplex           FAILED_PRECONDITION   a step through the form is more work than is allowed
├── AnswerStuck               FAILED_PRECONDITION   no token is left that the request allows
├── AdapterNotFound           NOT_FOUND             no such adapter, alias or version
├── AdapterRetired            FAILED_PRECONDITION
├── WrongBaseModel            FAILED_PRECONDITION   the version is for another base model
├── AdapterLoadFailed         FAILED_PRECONDITION   refused or unreadable, with every reason
├── AdapterTooLarge           RESOURCE_EXHAUSTED    larger than all memory for adapters
├── AdapterMemoryFull         RESOURCE_EXHAUSTED    everything in memory is in use
├── DiskCacheFull             RESOURCE_EXHAUSTED    loads keep all of the disk cache
├── AdapterLoading            UNAVAILABLE           on its way to memory; come back
├── QueueFull                 RESOURCE_EXHAUSTED
├── TenantRateExceeded        RESOURCE_EXHAUSTED    more tokens a second than its tenant may have; says when to retry
├── NameTaken                 FAILED_PRECONDITION   a name to push that is the registry's
├── ReloadRefused             FAILED_PRECONDITION   running requests cannot go on with weights of another kind
├── PushesOff                 FAILED_PRECONDITION
├── TooManyPushes             RESOURCE_EXHAUSTED
├── PushStalled               ABORTED               nothing came for too long
├── StateFolderInUse          FAILED_PRECONDITION   by another worker of this machine
├── RegistryUnreachable       UNAVAILABLE           and the reference is not known here
├── SourceUnavailable         UNAVAILABLE           another place of adapters cannot be reached
├── Draining                  UNAVAILABLE           the worker is shutting down
├── NotImplementedYet         UNIMPLEMENTED
└── EngineFailed              INTERNAL
"""

from __future__ import annotations

from typing import ClassVar

from rpc.errors import DomainError


class InferenceError(DomainError):
    """The worker failed."""

    domain: ClassVar[str] = "loraplex.inference"


class InvalidRequest(InferenceError):
    """The request can never work as it is."""

    code, reason = "INVALID_ARGUMENT", "INVALID_REQUEST"


class PromptTooLong(InvalidRequest):
    """The prompt is longer than the context."""

    reason = "PROMPT_TOO_LONG"


class GuideRefused(InvalidRequest):
    """The guide's form cannot be followed."""

    reason = "GUIDE_REFUSED"


class GuideTooComplex(InferenceError):
    """A step through the guide's form is more work than is allowed."""

    code, reason = "FAILED_PRECONDITION", "GUIDE_TOO_COMPLEX"


class AnswerStuck(InferenceError):
    """No token is left that the request allows here."""

    code, reason = "FAILED_PRECONDITION", "ANSWER_STUCK"


class BaseModelRefused(InferenceError):
    """The base model's folder cannot be served."""

    code, reason = "FAILED_PRECONDITION", "BASE_MODEL_REFUSED"


class AdapterNotFound(InferenceError):
    """No such adapter, alias or version."""

    code, reason = "NOT_FOUND", "ADAPTER_NOT_FOUND"


class AdapterRetired(InferenceError):
    """The version was retired; name another one."""

    code, reason = "FAILED_PRECONDITION", "VERSION_RETIRED"


class WrongBaseModel(InferenceError):
    """The version is for another base model than the one this worker runs."""

    code, reason = "FAILED_PRECONDITION", "WRONG_BASE_MODEL"


class AdapterLoadFailed(InferenceError):
    """The version cannot be loaded."""

    code, reason = "FAILED_PRECONDITION", "ADAPTER_LOAD_FAILED"


class AdapterTooLarge(InferenceError):
    """The adapter is larger than all memory for adapters."""

    code, reason = "RESOURCE_EXHAUSTED", "ADAPTER_TOO_LARGE"


class AdapterMemoryFull(InferenceError):
    """Every adapter in memory is in use by a request or pinned."""

    code, reason = "RESOURCE_EXHAUSTED", "ADAPTER_MEMORY_FULL"


class DiskCacheFull(InferenceError):
    """Everything in the disk cache is being loaded."""

    code, reason = "RESOURCE_EXHAUSTED", "DISK_CACHE_FULL"


class AdapterLoading(InferenceError):
    """The adapter is on its way to memory."""

    code, reason = "UNAVAILABLE", "ADAPTER_LOADING"


class QueueFull(InferenceError):
    """The queue is full."""

    code, reason = "RESOURCE_EXHAUSTED", "QUEUE_FULL"


class TenantRateExceeded(InferenceError):
    """The tenant has used the tokens that it may."""

    code, reason = "RESOURCE_EXHAUSTED", "TENANT_RATE_EXCEEDED"


class NameTaken(InferenceError):
    """The registry has an adapter of this name."""

    code, reason = "FAILED_PRECONDITION", "NAME_TAKEN"


class ReloadRefused(InferenceError):
    """Running requests cannot go on with these weights."""

    code, reason = "FAILED_PRECONDITION", "RELOAD_REFUSED"


class PushesOff(InferenceError):
    """This worker takes no pushes."""

    code, reason = "FAILED_PRECONDITION", "PUSHES_OFF"


class TooManyPushes(InferenceError):
    """Too many pushes are under way."""

    code, reason = "RESOURCE_EXHAUSTED", "TOO_MANY_PUSHES"


class PushStalled(InferenceError):
    """The push stopped coming."""

    code, reason = "ABORTED", "PUSH_STALLED"


class StateFolderInUse(InferenceError):
    """Another worker uses the state folder."""

    code, reason = "FAILED_PRECONDITION", "STATE_FOLDER_IN_USE"


class RegistryUnreachable(InferenceError):
    """The registry cannot be reached and the reference is not known here."""

    code, reason = "UNAVAILABLE", "REGISTRY_UNREACHABLE"


class SourceUnavailable(InferenceError):
    """The place that adapters come from cannot be reached."""

    code, reason = "UNAVAILABLE", "SOURCE_UNAVAILABLE"


class Draining(InferenceError):
    """The worker is shutting down."""

    code, reason = "UNAVAILABLE", "DRAINING"


class NotImplementedYet(InferenceError):
    """This is part of the contract and not of this release."""

    code, reason = "UNIMPLEMENTED", "NOT_IMPLEMENTED"


class EngineFailed(InferenceError):
    """The engine failed; the request was not answered."""

    code, reason = "INTERNAL", "ENGINE_FAILED"
