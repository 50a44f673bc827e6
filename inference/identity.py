"""What a worker is, in the words of its answers: the base model and the process. It holds no behaviour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The base model as answers name it; `max_context` in tokens."""

    name: str
    digest: str
    vocab_size: int
    max_context: int


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What does not change while a worker runs."""

    worker_id: str
    device: str
    dtype: str
