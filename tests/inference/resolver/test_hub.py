"""The hub: listed repositories at one commit, over real HTTP to a hub of the test's own."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adapter.manifest import ADAPTER_FILES, CONFIG_FILE, PROBE_FILE, WEIGHTS_FILE, manifest_of_adapter
from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterNotFound, InvalidRequest, SourceUnavailable
from inference.resolver.hub import HubResolver, Pin, parse_pins

COMMIT = "0123456789" * 4
PIN = Pin("sql", "owner/repo", COMMIT)


class Hub:
    """Files by path; answers as the Hugging Face hub does, and remembers what was asked and shown."""

    def __init__(self):
        self.files = {}
        self.asked = []
        self.tokens = set()
        self.error_status = 404
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer(with_body=False)

            def do_GET(self):
                self.answer(with_body=True)

            def answer(self, *, with_body):
                hub.asked.append(self.path)
                hub.tokens.add(self.headers.get("authorization"))
                content = hub.files.get(self.path)
                self.send_response(200 if content is not None else hub.error_status)
                if content is None and hub.error_status == 404:
                    self.send_header("X-Error-Code", "EntryNotFound")
                elif content is not None:
                    self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                    self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if with_body and content:
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def put(self, folder, *, repository="owner/repo", under=""):
        for path in folder.iterdir():
            self.files[f"/{repository}/resolve/{COMMIT}/{under}{path.name}"] = path.read_bytes()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def open_hub(hub, intake, base):
    def open_(*pins, **options):
        return HubResolver(
            pins, intake, base_model_digest=base["base_model_digest"], **{"endpoint": hub.url, **options}
        )

    return open_


async def test_a_listed_adapter_is_downloaded_once_and_only_its_own_files(hub, open_hub, write_files, tmp_path):
    folder = write_files(tmp_path / "repo")
    (folder / "run_me.py").write_text("print('no')")
    hub.put(folder)
    resolver = open_hub(PIN)
    version = await resolver.resolve(Reference.parse("sql"))
    assert version.digest == manifest_of_adapter(folder).digest
    asked = len(hub.asked)
    assert await resolver.resolve(Reference.parse("sql")) == version
    assert await resolver.resolve(Reference.parse(version.digest)) == version
    copy = await resolver.fetch(version)
    assert {path.name for path in copy.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    assert len(hub.asked) == asked
    assert {path.rpartition("/")[2] for path in hub.asked} == set(ADAPTER_FILES)
    assert hub.tokens == {None}


async def test_a_folder_of_a_repository_and_a_token(hub, open_hub, write_files, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    folder = write_files(tmp_path / "repo")
    (folder / PROBE_FILE).write_text("{}")
    hub.put(folder, under="a/b/")
    version = await open_hub(Pin("sql", "owner/repo", COMMIT, "a/b"), token="hf_ours").resolve(Reference.parse("sql"))
    assert version.digest == manifest_of_adapter(folder).digest
    assert hub.tokens == {"Bearer hf_ours"}


async def test_nothing_else_can_be_asked_for(hub, open_hub):
    resolver = open_hub(PIN)
    for reference in ("other", "sql@main", "sql:1", "sha256:" + "0" * 64):
        with pytest.raises(AdapterNotFound, match="among those of the hub: sql"):
            await resolver.resolve(Reference.parse(reference))
    assert hub.asked == []


async def test_a_copy_that_has_left_the_cache_is_downloaded_again(hub, open_hub, write_files, tmp_path):
    hub.put(write_files(tmp_path / "repo"))
    resolver = open_hub(PIN)
    version = await resolver.resolve(Reference.parse("sql"))
    resolver.forget(version)
    assert manifest_of_adapter(await resolver.fetch(version)).digest == version.digest


async def test_a_repository_without_weights_is_no_adapter(hub, open_hub, write_files, tmp_path):
    folder = write_files(tmp_path / "repo")
    (folder / WEIGHTS_FILE).unlink()
    hub.put(folder)
    with pytest.raises(AdapterLoadFailed, match=WEIGHTS_FILE):
        await open_hub(PIN).resolve(Reference.parse("sql"))


async def test_a_hub_that_answers_something_else_is_unavailable(hub, open_hub):
    hub.error_status = 400  # the library tries others again for half a minute
    with pytest.raises(SourceUnavailable, match="owner/repo"):
        await open_hub(PIN).resolve(Reference.parse("sql"))


def test_a_pin_is_a_repository_at_a_commit():
    assert parse_pins([f"sql=owner/repo@{COMMIT}", f"a=o/r@{COMMIT}/x/y"]) == [PIN, Pin("a", "o/r", COMMIT, "x/y")]


@pytest.mark.parametrize(
    "item",
    [
        "sql", "sql=owner/repo", "sql=owner/repo@main", "sql=owner/repo@v1.0", f"sql=owner/repo@{COMMIT[:7]}",
        f"sql=repo@{COMMIT}", f"sql=owner/repo@{COMMIT}/../x", f"sql=../repo@{COMMIT}", f"sql=owner/repo@{COMMIT}/",
    ],
)  # fmt: skip
def test_anything_that_could_move_is_refused(item):
    with pytest.raises(InvalidRequest, match="40 hex digits"):
        parse_pins([item])


def test_without_the_package_it_says_how_to_get_it(open_hub, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(InvalidRequest, match=r"install loraplex\[hub\]"):
        open_hub(PIN)
