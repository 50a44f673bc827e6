"""What the command line shows: tables for people, JSON or YAML for programs, progress on stderr. It knows no RPC.

With `-o json` or `-o yaml`, stdout carries one document and nothing else, ever; with `watch` one a line, or one after
each `---`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from registry.documents import encode
from registry.fleet import Standing, WorkerStanding
from registry.resources import (
    Adapter,
    AdapterVersion,
    Alias,
    AliasChanged,
    AliasTarget,
    BaseModel,
    BaseModelCreated,
    Change,
    Event,
    SnapshotEnd,
    SnapshotItem,
    VersionRegistered,
    VersionRetired,
    VersionUnretired,
    WatchMessage,
    Worker,
)

# Programs that read a pipe want whole lines; no terminal is this wide.
_PIPE_COLUMNS = 10_000
_STYLES = {"serving": "green", "ready": "green", "live": "green", "failed": "red", "lost": "red", "retired": "dim"}


class Printer:
    """Writes to stdout in one form: `table`, `json` or `yaml`."""

    def __init__(self, form: str) -> None:
        self._form = form

    @property
    def writes_documents(self) -> bool:
        """Whether a program reads, so that nothing but documents may be written."""
        return self._form != "table"

    def document(self, value: object) -> None:
        """A resource, or resources by name."""
        if self._form == "yaml":
            self._write(to_yaml(value))
        else:
            self._write(json.dumps(to_document(value), indent=2, ensure_ascii=False) + "\n")

    def document_line(self, value: object) -> None:
        """One of a stream of documents; as JSON on one line."""
        if self._form == "yaml":
            self._write("---\n" + to_yaml(value))
        else:
            self._write(json.dumps(to_document(value), ensure_ascii=False) + "\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def outcome(self, sentence: str, document: object) -> None:
        """What was done: a sentence for people, a document for programs."""
        if self.writes_documents:
            self.document(document)
        else:
            self.line(sentence)

    def line(self, text: str) -> None:
        """A sentence for people."""
        console(sys.stdout).print(clean(text), soft_wrap=True)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
        """Aligned columns, or the sentence `empty`."""
        if not rows:
            self.line(empty)
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for header in headers:
            table.add_column(header, justify="right" if header in ("SIZE", "RANK", "LATEST", "REVISION") else "left")
        for row in rows:
            table.add_row(*(clean(cell) for cell in row))
        _print(table)

    def facts(self, pairs: Sequence[tuple[str, str]]) -> None:
        """One value a line under its name; what is empty is left out."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in pairs:
            if value:
                table.add_row(name, clean(value))
        _print(table)


def to_document(value: object) -> object:
    """Plain JSON values; a mapping's values and a list's items are resources or plain."""
    if isinstance(value, dict):
        return {key: to_document(one) for key, one in value.items()}
    return [to_document(one) for one in value] if isinstance(value, list) else encode(value)


def to_yaml(value: object) -> str:
    """The same document as YAML, its keys in the same order."""
    import yaml

    text: str = yaml.safe_dump(to_document(value), sort_keys=False, allow_unicode=True, width=_PIPE_COLUMNS)
    return text


def _print(table: Table) -> None:
    """Without the spaces that fill a table's last column."""
    out = console(sys.stdout)
    with out.capture() as captured:
        out.print(table)
    for line in captured.get().splitlines():
        sys.stdout.write(f"{line.rstrip()}\n")
    sys.stdout.flush()


def console(file: IO[str]) -> Console:
    """A console that leaves text alone but for a style per cell."""
    width = None if file.isatty() else _PIPE_COLUMNS
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def clean(text: str) -> Text:
    """Text of strangers without what could steer a terminal."""
    safe = "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
    return Text(safe, style=_STYLES.get(text, ""))


@contextmanager
def byte_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, when that is a terminal; the function is told how many bytes of how many are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def worker_progress() -> Iterator[Callable[[list[WorkerStanding]], None]]:
    """A line per worker on stderr; on a terminal it changes in place, elsewhere each change is a line of its own."""
    if not sys.stderr.isatty():
        told: dict[str, str] = {}

        def tell(now: list[WorkerStanding]) -> None:
            for one in now:
                if told.get(one.worker) != one.standing:
                    told[one.worker] = one.standing
                    console(sys.stderr).print(clean(f"{one.worker}: {one.standing}"))

        yield tell
        return
    columns = (SpinnerColumn(finished_text="•"), TextColumn("{task.description}"))
    with Progress(*columns, console=console(sys.stderr), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def draw(now: list[WorkerStanding]) -> None:
            for one in now:
                if one.worker not in tasks:
                    tasks[one.worker] = progress.add_task("", total=1)
                is_settled = one.standing in (Standing.SERVING, Standing.FAILED)
                progress.update(
                    tasks[one.worker], description=f"{clean(one.worker)}  {one.standing}", completed=int(is_settled)
                )

        yield draw


def size(num_bytes: int) -> str:
    """In the largest unit of 1024 that leaves at least one before the point."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age(time: datetime | None) -> str:
    """How long ago, in one unit."""
    if time is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - time).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def short(digest: str) -> str:
    """Enough of a digest to tell two apart; commands take only whole ones."""
    return digest[: len("sha256:") + 12]


def targets(found: Sequence[AliasTarget]) -> str:
    """`3`, or `3 90 % + 4 10 %` for a split."""
    if len(found) == 1:
        return str(found[0].version)
    return " + ".join(f"{one.version} {'shadow' if one.shadow else f'{one.weight / 100:g} %'}" for one in found)


def aliases(found: Sequence[Alias]) -> str:
    """`production=3 (protected), canary=4`."""
    return ", ".join(
        f"{alias.alias}={targets(alias.targets)}{' (protected)' if alias.protected else ''}" for alias in found
    )


def adapter_row(adapter: Adapter) -> tuple[str, ...]:
    """NAME, BASE MODEL, LATEST, ALIASES, CREATED."""
    latest = str(adapter.latest_version or "-")
    return (adapter.name, adapter.base_model, latest, aliases(adapter.aliases), age(adapter.create_time))


def base_model_row(model: BaseModel) -> tuple[str, ...]:
    """NAME, ARCHITECTURE, SIZE, DIGEST, CREATED."""
    return (
        model.name,
        model.architecture,
        size(model.manifest.size_bytes),
        short(model.digest),
        age(model.create_time),
    )


def base_model_facts(model: BaseModel) -> list[tuple[str, str]]:
    """Everything about one base model but its list of modules."""
    parents = (f"{one.relation.value} of {one.base_model or one.adapter_version}" for one in model.parents)
    return [
        ("base model", model.name),
        ("digest", model.digest),
        ("architecture", model.architecture),
        ("modules", str(len(model.modules))),
        ("parents", "\n".join(parents)),
        ("files", "\n".join(f"{file.path}  {size(file.size_bytes)}" for file in model.manifest.files)),
        ("created", _moment(model.create_time)),
    ]


def adapter_facts(adapter: Adapter) -> list[tuple[str, str]]:
    """One adapter without its versions."""
    return [
        ("adapter", adapter.name),
        ("base model", adapter.base_model),
        ("aliases", aliases(adapter.aliases)),
        ("created", _moment(adapter.create_time)),
    ]


def version_row(version: AdapterVersion) -> tuple[str, ...]:
    """VERSION, STATE, ALIASES, RANK, TARGETS, SIZE, DIGEST, CREATED."""
    return (
        str(version.number),
        version.state.value,
        ", ".join(version.aliases),
        str(version.rank or "-"),
        ", ".join(version.target_modules),
        size(version.size_bytes),
        short(version.digest),
        age(version.create_time),
    )


def version_facts(version: AdapterVersion) -> list[tuple[str, str]]:
    """Everything about one version."""
    provenance = version.provenance
    return [
        ("version", f"{version.adapter}:{version.number}"),
        ("digest", version.digest),
        ("state", version.state.value),
        ("rejected", "\n".join(version.rejection_reasons)),
        ("aliases", ", ".join(version.aliases)),
        ("base model", f"{version.base_model} ({version.base_model_digest})"),
        ("rank, alpha", f"{version.rank}, {version.alpha:g}" if version.rank else ""),
        ("targets", ", ".join(version.target_modules)),
        ("features", ", ".join(version.features)),
        ("parent", version.parent),
        ("signed by", version.signature.key_id if version.signature else ""),
        ("git commit", provenance.git_commit),
        ("run", provenance.run_uri),
        ("datasets", "\n".join(provenance.dataset_uris)),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(provenance.labels.items()))),
        ("files", "\n".join(f"{file.path}  {size(file.size_bytes)}" for file in version.manifest.files)),
        ("created", _moment(version.create_time)),
        ("revision", str(version.revision)),
    ]


def worker_row(worker: Worker) -> tuple[str, ...]:
    """WORKER, STATE, BASE MODEL, REVISION, ADDRESS, SERVES, REPORTED."""
    serves = (
        f"{one.adapter}:{one.version} {one.state.value}"
        + (f" ({', '.join(one.aliases)})" if one.aliases else "")
        + (f": {one.failure}" if one.failure else "")
        for one in worker.adapters
    )
    return (
        worker.id,
        worker.state.value,
        worker.base_model,
        str(worker.observed_revision),
        worker.address,
        "\n".join(serves),
        age(worker.report_time),
    )


def message_document(message: WatchMessage) -> dict[str, object]:
    """A message of a watch with its kind."""
    return {"kind": type(message).__name__, **encode(message)}


def message_lines(message: WatchMessage) -> list[str]:
    """A message of a watch for people; progress says nothing."""
    match message:
        case SnapshotItem(BaseModel() as model):
            return [f"exists    base model {model.name}  {short(model.digest)}"]
        case SnapshotItem(Alias() as alias):
            return [f"exists    {alias.adapter}@{alias.alias} -> {targets(alias.targets)}"]
        case SnapshotItem(AdapterVersion() as version):
            return [f"exists    {version.adapter}:{version.number}  {short(version.digest)}  {version.state.value}"]
        case SnapshotEnd(revision):
            return [f"revision  {revision}; what follows is new"]
        case Change(revision, events):
            return [f"{revision:<8}  {event.time:%H:%M:%S}  {_event_line(event)}" for event in events]
        case _:
            return []


def _event_line(event: Event) -> str:
    match event.happening:
        case BaseModelCreated(model):
            return f"added base model {model.name}  {short(model.digest)}"
        case VersionRegistered(version):
            return f"registered {version.adapter}:{version.number}  {short(version.digest)}"
        case AliasChanged(alias, _):
            return f"{alias.adapter}@{alias.alias} -> {targets(alias.targets)}"
        case VersionRetired(version):
            return f"retired {version.adapter}:{version.number}"
        case VersionUnretired(version):
            return f"unretired {version.adapter}:{version.number}"


def _moment(time: datetime | None) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if time else ""
