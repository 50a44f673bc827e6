"""What a stranger's files can cost before they are refused: never more than 64 MiB, and little work.

Each case runs in a process of its own whose memory may not grow further, as the registry's would, and which first
measures how fast the machine is just then.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.config import MAX_PATTERNS
from adapter.header import MAX_HEADER_BYTES, MAX_TENSORS

MAX_BYTES = 64 * 2**20
# In units of a hundred thousand squares summed, of which a calm core of a server does 170 in a second and the dearest
# case takes 120. What these tests are for, work that grows with the square of a text or faster, takes thousands.
MAX_WORK = 400

# The limit is on the address space, so it also counts what is asked for and never touched.
PROGRAM = """
import resource, statistics, sys, time
from pathlib import Path
from adapter.config import read_config
from adapter.errors import AdapterRefused
from adapter.header import read_header
from adapter.plan import plan

def mapped():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

def unit_s():
    began = time.process_time()
    sum(n * n for n in range(10**5))
    return time.process_time() - began

unit = statistics.median(unit_s() for _ in range(3))
folder = Path(sys.argv[1])
limit = mapped() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
began = time.process_time()
try:
    header = read_header(folder / "adapter_model.safetensors")
    config = read_config(folder / "adapter_config.json")
    plan(config, header, {f"model.layers.{n}.q_proj": (4, 4) for n in range(200)})
    found = "accepted"
except AdapterRefused as refused:
    found = "refused"
    str(refused)
print(found, (time.process_time() - began) / unit)
"""

CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
EMPTY = '{"dtype":"F32","shape":[0,1],"data_offsets":[0,0]}'
ENTRY = '{"dtype":"F32","shape":[1,1],"data_offsets":[%d,%d]}'


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[[bytes, bytes], None]:
    """Runs the checks on a header and a configuration, and expects a refusal within the limits."""

    def refuse(header: bytes, config: bytes) -> None:
        (tmp_path / "adapter_model.safetensors").write_bytes(header)
        (tmp_path / "adapter_config.json").write_bytes(config)
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(MAX_BYTES)],
            capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-2000:]
        found, work = ended.stdout.split()
        assert found == "refused"
        assert float(work) < MAX_WORK

    return refuse


def framed(text: str | bytes, size: int | None = None) -> bytes:
    """A file with this header, and a length in front that may be another one."""
    raw = text.encode() if isinstance(text, str) else text
    return (len(raw) if size is None else size).to_bytes(8, "little") + raw


def entries(count: int, entry: Callable[[int], str], *, part: str = "lora_A") -> str:
    return (
        "{"
        + ",".join(f'"base_model.model.model.layers.{n}.q_proj.{part}.weight":{entry(n)}' for n in range(count))
        + "}"
    )


def filled(unit: str, *, begin: str = "{", end: str = "}") -> str:
    """As many units as a header may have bytes."""
    room = MAX_HEADER_BYTES - len(begin) - len(end)
    return begin + unit * (room // len(unit.encode())) + end


HEADERS: dict[str, Callable[[], bytes]] = {
    "a million empty tensors": lambda: framed(
        "{" + ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(1_000_000)) + "}"
    ),
    "as many tensors as there may be, with a gap": lambda: framed(
        entries(MAX_TENSORS, lambda n: ENTRY % (1000 + n, 1004 + n))
    ),
    "as many tensors as there may be, all wrong": lambda: framed(
        entries(MAX_TENSORS, lambda n: ENTRY % (10**14 + n, 10**14))
    ),
    "as many tensors as there may be, of no module": lambda: framed(
        entries(MAX_TENSORS, lambda n: EMPTY, part="lora_X")
    ),
    "numbers by name": lambda: framed("{" + ",".join(f'"{n}":0' for n in range(MAX_TENSORS * 4)) + "}"),
    "metadata by name": lambda: framed(
        '{"__metadata__":{' + ",".join(f'"{n}":"{n}"' for n in range(MAX_TENSORS * 4)) + "}}"
    ),
    "the same key twice": lambda: framed('{"a":' + ENTRY % (0, 4) + ',"a":' + ENTRY % (0, 4) + "}"),
    "the same key always": lambda: framed("{" + ",".join(['"a":0'] * MAX_TENSORS * 4) + "}"),
    "a long name": lambda: framed(filled("a", begin='{"', end='":0}')),
    "a long name of wide characters": lambda: framed(filled("\U0001f600", begin='{"', end='":0}')),
    "a long name with one wide character": lambda: framed(filled("a", begin='{"\U0001f600', end='":0}')),
    "escapes": lambda: framed(filled("\\u1234", begin='{"', end='":0}')),
    "a long number": lambda: framed(filled("9", begin='{"a":', end="}")),
    "a fraction": lambda: framed(filled("9", begin='{"a":0.', end="}")),
    "small lists": lambda: framed(filled("[],", begin='{"a":[', end="0]}")),
    "small objects": lambda: framed(filled("{},", begin='{"a":[', end="0]}")),
    "small numbers": lambda: framed(filled("1000,", begin='{"a":[', end="0]}")),
    "open lists": lambda: framed(filled("[", end="")),
    "spaces": lambda: framed(filled(" ", end="}")),
    "a huge declared size": lambda: framed("{}", size=2**63),
    "a declared size of the largest header": lambda: framed("{}", size=MAX_HEADER_BYTES),
    "a huge declared shape": lambda: framed(
        '{"a":{"dtype":"F64","shape":[281474976710656,281474976710656],"data_offsets":[0,8]}}'
    ),
}
ROOM = 2**20 - 100
PATTERN_KEYS = ("rank_pattern", "alpha_pattern")
CONFIGS: dict[str, bytes] = {
    "small lists": b'{"target_modules":[' + b"[]," * (ROOM // 3) + b"0]}",
    "names": b'{"target_modules":[' + b",".join(b'"%d"' % n for n in range(ROOM // 9)) + b"]}",
    "keys": b"{" + b",".join(b'"%d":0' % n for n in range(ROOM // 11)) + b"}",
    "open lists": b"[" * ROOM,
    "a long number": b'{"r":' + b"9" * ROOM + b"}",
    "more than it may have": b" " * 2**24,
    "an expression that backtracks": json.dumps(
        {**CONFIG, "target_modules": r"(.*.*.*.*.*.*.*.*.*)*=(model|layers)+$"}
    ).encode(),
    "an expression with a huge repetition": json.dumps(
        {**CONFIG, "target_modules": "((a{1000}){1000}){1000}"}
    ).encode(),
    "many expressions that are slow at every name": json.dumps(
        {**CONFIG, "rank_pattern": {"((a|b|.)*(c|.)*)*(?=.*x)" + "(.*)" * (100 + n) + "!": 1 for n in range(16)}}
    ).encode(),
    "many expressions that tell layers apart": json.dumps(
        {**CONFIG, "rank_pattern": {r"(.*(1|2|.)*)*" * 9 + f"{n}!": 1 for n in range(16)}}
    ).encode(),
    "as many names by pattern as there may be": json.dumps(
        {**CONFIG} | {key: {f".{n:04}..q_proj": 1 for n in range(MAX_PATTERNS)} for key in PATTERN_KEYS}
    ).encode(),
    "as many long names by pattern as there may be": json.dumps(
        {**CONFIG}
        | {key: {f"model.layers.{n}.self_attn.q_proj": 1 for n in range(MAX_PATTERNS)} for key in PATTERN_KEYS}
    ).encode(),
    "many names of layers": json.dumps(
        {**CONFIG, "layers_to_transform": [0], "layers_pattern": [f"layers{n}" for n in range(50_000)]}
    ).encode(),
    "a long expression": json.dumps({**CONFIG, "target_modules": "(a|b)*" * 10_000}).encode(),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_made_to_cost_is_refused_cheaply(refuse: Callable[[bytes, bytes], None], case: str) -> None:
    refuse(HEADERS[case](), json.dumps(CONFIG).encode())


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_made_to_cost_is_refused_cheaply(refuse: Callable[[bytes, bytes], None], case: str) -> None:
    refuse(framed("{}"), CONFIGS[case])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(unit=JSON, count=st.integers(1, 200_000), cut=st.integers(0, 50), size=st.none() | st.integers(0, 2**64 - 1))
def test_whatever_is_repeated_in_a_header_is_refused_cheaply(
    refuse: Callable[[bytes, bytes], None], unit: object, count: int, cut: int, size: int | None
) -> None:
    """Not one of these is an adapter: the target's tensors are missing."""
    text = json.dumps(unit)
    count = min(count, 2 * MAX_HEADER_BYTES // (len(text) + 1))
    raw = ('{"a":[' + ",".join([text] * count) + "]}").encode()
    refuse(framed(raw[: len(raw) - cut], size), json.dumps(CONFIG).encode())


@FEW
@given(key=st.sampled_from([*CONFIG, "rank_pattern", "alpha_pattern", "layers_to_transform", "x"]), value=JSON)
def test_whatever_is_in_a_configuration_is_refused_cheaply(
    refuse: Callable[[bytes, bytes], None], key: str, value: object
) -> None:
    refuse(framed("{}"), json.dumps({**CONFIG, key: value}).encode())
