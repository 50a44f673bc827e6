"""The file that says what each tenant may take: JSON to the engine's policies.

    {"acme": {"weight": 3, "max_rows": 16}, "sql": {"tokens_per_s": 500, "burst_tokens": 20000}, "*": {"weight": 1}}

A name is a tenant that requests name, or the adapter that they use where they name none; `*` is everybody else.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from inference.engine.tenants import TenantPolicy, Tenants
from inference.errors import InvalidRequest

EVERYBODY_ELSE = "*"
# What may be said of a tenant, the least that it may be, and whether it counts something.
_KEYS = {"weight": (1e-6, False), "max_rows": (1, True), "tokens_per_s": (1e-6, False), "burst_tokens": (1, True)}


def read_tenants(path: Path) -> Tenants:
    """Raises InvalidRequest with the tenant and the key at fault."""
    try:
        tenants = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"tenants: expected a JSON file at {path}: {error}", field="tenants") from error
    if not isinstance(tenants, dict):
        raise InvalidRequest(f"tenants: expected an object of tenants in {path}, found {tenants!r}", field="tenants")
    policies = {name: _policy(name, policy) for name, policy in tenants.items()}
    rest = policies.pop(EVERYBODY_ELSE, TenantPolicy())
    return Tenants(policies, rest)


def _policy(name: str, policy: Any) -> TenantPolicy:
    if not isinstance(policy, dict):
        raise InvalidRequest(f"tenants.{name}: expected an object, found {policy!r}", field="tenants")
    for key, value in policy.items():
        if key not in _KEYS:
            raise InvalidRequest(f"tenants.{name}: expected {', '.join(_KEYS)}, found {key}", field="tenants")
        least, is_count = _KEYS[key]
        is_right = isinstance(value, int if is_count else int | float) and not isinstance(value, bool)
        if not is_right or not least <= value < math.inf:
            kind = "a whole number" if is_count else "a number"
            raise InvalidRequest(
                f"tenants.{name}.{key}: expected {kind} of at least {least:g}, found {value!r}", field="tenants"
            )
    return TenantPolicy(**policy)
