"""What a worker can be told, and the one reader of its environment.

Every setting is a flag of `inference serve` and a variable `LORAPLEX_WORKER_<NAME>`; a flag wins over a variable.
Sizes take KiB, MiB and GiB (`512MiB`). A value that cannot be used is refused, never replaced by the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from adapter.plan import MAX_RANK
from inference.errors import InvalidRequest
from inference.lora.slots import MAX_SLOTS
from rpc.security import ClientSecurity, Security, read_secret, read_token_file

PREFIX = "LORAPLEX_WORKER_"
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True, slots=True)
class Settings:
    """How one worker runs. Sizes are bytes, times seconds; 0 means that the worker chooses where that is said."""

    model: Path
    """A Hugging Face folder: config.json, *.safetensors, tokenizer.json."""
    base_model_name: str = ""
    """The model's name in the registry; the folder's name when empty."""
    listen: str = "127.0.0.1:7200"
    advertise: str = ""
    """The address that the worker reports to the registry; the listening one when empty."""
    registry: str = ""
    """host:port of the registry."""
    registry_token_file: Path | None = None
    """Holds the bearer token that the worker shows to the registry."""
    registry_ca: Path | None = None
    adapters: tuple[str, ...] = ()
    """NAME=FOLDER, or vLLM's {"name", "path", "base_model_name"}, of adapters that need no registry."""
    adapter_dirs: tuple[str, ...] = ()
    """Directories with an adapter in `<base model>/<name>` or `<name>`, looked up when it is asked for."""
    adapter_urls: tuple[str, ...] = ()
    """The same under URLs: file, or one of resolver.url.SCHEMES."""
    hub: tuple[str, ...] = ()
    """NAME=OWNER/REPOSITORY@COMMIT[/FOLDER] of adapters from the Hugging Face hub; no others can be asked for."""
    hub_token_file: Path | None = None
    """Holds the token to show to the hub; none is shown without it, whatever the environment has."""
    resolvers: tuple[str, ...] = ()
    """NAME or NAME=ARGUMENT of installed resolvers of other packages; see resolver.plugins."""
    merge: str = ""
    """The reference of an adapter to merge into the base model, for a worker that mostly serves it. Its layers take the
    memory of those that it changes once more."""
    state_dir: Path = Path.home() / ".local" / "state" / "loraplex" / "worker"
    """Verified adapter files and what the registry last said, so that a worker starts without it."""
    pushes: str = "new"
    """off; new, which takes pushes under names that the registry has not; any, which takes them under its names too."""
    push_bytes: int = 2**30
    """The largest file of weights that may be pushed."""
    device: str = "cpu"
    """cpu; cuda, or auto, which takes a CUDA device where one will do. The CUDA path has never run on a device."""
    deterministic: bool = False
    """Whether an answer is the same bits alone and in any batch, at some cost; on a CPU only."""
    dtype: str = "auto"
    """auto, float32 or bfloat16."""
    threads: int = 0
    """Threads of the CPU path; 0 means one for each core."""
    adapter_memory: int = 512 * 2**20
    host_cache: int = 2**30
    """Adapters kept in host memory, ready to be copied to `adapter_memory`; 0 means none. On a CPU both are the same
    kind of memory: it saves a load the file's hash and conversion. It is taken as adapters come, not at the start."""
    disk_cache: int = 16 * 2**30
    """Verified adapter files in `state_dir`; beyond it the least recently used leave."""
    max_loras: int = 0
    """Adapters in `adapter_memory` at once; 0 means as many as there is room for."""
    max_lora_rank: int = 0
    """The largest rank of an adapter's module; 0 means the largest that any adapter may have."""
    max_cpu_loras: int = 0
    """Adapters in `host_cache` at once; 0 means as many as there is room for."""
    check_adapters: bool = False
    """Whether each step reads the weights that it uses once more and checks that they are those of their digests. It
    takes as long as the step: for tests, and for the hunt for a defect."""
    kv_memory: int = 512 * 2**20
    max_context: int = 0
    """Tokens of prompt and answer together; 0 means the model's own limit."""
    max_batch: int = 64
    """Requests in one step."""
    max_batch_adapters: int = 0
    """Distinct adapters in one step; 0 means any number."""
    tenants: Path | None = None
    """A JSON file of each tenant's weight, rows and rate, as inference/tenants.py reads it; all are equal without."""
    prefix_cache: bool = True
    """Whether a prompt may begin with what earlier requests on the same weights computed."""
    step_tokens: int = 128
    """Tokens in one step, prompts and answers together; more makes prompts faster and running answers jerkier."""
    max_queue: int = 1024
    """Requests that may wait before others are refused."""
    max_queue_tokens: int = 2**20
    """Tokens of their prompts, about 40 bytes each, that may wait before others are refused."""
    load_wait_s: float = 30.0
    """How long a request waits for memory when every loaded adapter is in use."""
    drain_s: float = 30.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    token_file: Path | None = None
    metrics_listen: str = ""
    """host:port for Prometheus; none when empty."""

    def __post_init__(self) -> None:
        if not self.base_model_name:
            object.__setattr__(self, "base_model_name", self.model.resolve().name)
        if self.device not in ("auto", "cpu", "cuda"):
            raise InvalidRequest(f"device: expected auto, cpu or cuda, found {self.device}", field="device")
        if self.merge and self.deterministic:
            raise InvalidRequest(
                "merge: expected none in deterministic steps, as merged weights round otherwise than adapters beside "
                f"other rows; found {self.merge}",
                field="merge",
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise InvalidRequest(f"dtype: expected auto, float32 or bfloat16, found {self.dtype}", field="dtype")
        if self.pushes not in ("off", "new", "any"):
            raise InvalidRequest(f"pushes: expected off, new or any, found {self.pushes}", field="pushes")
        for name in ("max_batch_adapters", "max_loras", "max_lora_rank", "max_cpu_loras", "host_cache", "max_context",
            "drain_s", "load_wait_s", "threads",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:  # NaN neither
                raise InvalidRequest(f"{name}: expected at least 0, found {getattr(self, name)}", field=name)
        if self.max_loras > MAX_SLOTS:
            raise InvalidRequest(f"max_loras: expected at most {MAX_SLOTS}, found {self.max_loras}", field="max_loras")
        if self.max_lora_rank > MAX_RANK:
            raise InvalidRequest(
                f"max_lora_rank: expected at most {MAX_RANK}, found {self.max_lora_rank}", field="max_lora_rank"
            )
        for name in ("adapter_memory", "disk_cache", "kv_memory", "max_batch", "step_tokens", "max_queue",
            "max_queue_tokens", "push_bytes",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name}: expected at least 1, found {getattr(self, name)}", field=name)

    @classmethod
    def read(cls, flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
        """Flags that are not None, then the environment, then defaults. Raises InvalidRequest with the name."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field in fields(cls):
            variable = PREFIX + field.name.upper()
            if flags.get(field.name) not in (None, ()):
                values[field.name] = flags[field.name]
            elif environ.get(variable):
                values[field.name] = environ[variable]
        unknown = [name for name in environ if name.startswith(PREFIX) and name[len(PREFIX) :].lower() not in _NAMES]
        if unknown:
            raise InvalidRequest(f"unknown setting {unknown[0]} in the environment", field=unknown[0])
        if "model" not in values:
            raise InvalidRequest(f"expected a model folder: give --model or {PREFIX}MODEL", field="model")
        return cls(**{name: _parse(name, value) for name, value in values.items()})

    def security(self) -> Security:
        """What the worker asks of its callers."""
        hashes = read_token_file(self.token_file) if self.token_file else {}
        return Security(tls_cert=self.tls_cert, tls_key=self.tls_key, client_ca=self.client_ca, token_hashes=hashes)

    def registry_security(self) -> ClientSecurity:
        """What the worker shows to the registry."""
        token = read_secret(self.registry_token_file) if self.registry_token_file else ""
        return ClientSecurity(ca=self.registry_ca, token=token)


_NAMES = frozenset(field.name for field in fields(Settings))
_PATHS = frozenset(
    {
        "model", "state_dir", "registry_ca", "registry_token_file", "tls_cert", "tls_key", "client_ca", "token_file",
        "hub_token_file", "tenants",
    }
)  # fmt: skip
_BYTES = frozenset({"adapter_memory", "host_cache", "disk_cache", "kv_memory", "push_bytes"})
_COUNTS = frozenset(
    {
        "threads", "max_context", "max_batch", "max_batch_adapters", "step_tokens", "max_queue", "max_queue_tokens",
        "max_loras", "max_lora_rank", "max_cpu_loras",
    }
)  # fmt: skip
_LISTS = frozenset({"adapters", "adapter_dirs", "adapter_urls", "hub", "resolvers"})
_FLAGS = frozenset({"check_adapters", "deterministic", "prefix_cache"})
_FLAG_VALUES = {"true": True, "1": True, "false": False, "0": False}
_SECONDS = frozenset({"load_wait_s", "drain_s"})


def parse_bytes(text: str) -> int:
    """`1536`, `512MiB`, `2g`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ValueError("a size such as 512MiB")
    return int(float(match[1]) * UNITS[match[2]])


def _parse_flag(text: str) -> bool:
    if text.lower() not in _FLAG_VALUES:
        raise ValueError("true or false")
    return _FLAG_VALUES[text.lower()]


def _parse(name: str, value: Any) -> Any:
    try:
        if name in _PATHS:
            return Path(value)
        if name in _BYTES | _FLAGS:
            read = parse_bytes if name in _BYTES else _parse_flag
            return read(value) if isinstance(value, str) else value
        if name in _COUNTS:
            return int(value)
        if name in _SECONDS:
            return float(value)
        if name in _LISTS and isinstance(value, str):
            # JSON has commas of its own.
            return (value,) if value.lstrip().startswith(("{", "[")) else tuple(filter(None, value.split(",")))
    except ValueError as error:
        expected = str(error) if name in _BYTES | _FLAGS else "a number"
        raise InvalidRequest(f"{name}: expected {expected}, found {value!r}", field=name) from error
    return value
