"""What an answer must obey, token by token. Knows ids and tensors; who makes a constraint knows what the ids mean.

Constraint  ── begin, once for each answer ──►  Walk  ── allowed(answer so far) ──►  the tokens that may be next
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Walk(Protocol):
    """One answer's way through a constraint."""

    def allowed(self, output_ids: Sequence[int]) -> Tensor:
        """The tokens that may come after `output_ids`: bool [N] on the CPU, which nobody changes; none from N on.

        A function of the tokens alone, so an answer that was preempted or a step that failed and runs again gets the
        same; only the tokens since the last call are looked at, and the answer never gets shorter. Raises
        InferenceError when the answer cannot go on.
        """


class Constraint(Protocol):
    """What every answer of a request must obey."""

    def begin(self) -> Walk:
        """A new answer's walk."""
