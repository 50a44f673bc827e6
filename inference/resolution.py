"""The part of the composition root that builds a worker's resolvers, in the order in which they are asked.

    pushed      what a trainer pushed into this worker          unless the registry has the name, or with --pushes any
    modules     --adapter, --lora-modules                       unless the registry has the name
    registry    --registry
    directories --adapter-dir, in their order
    urls        --adapter-url, in their order
    hub         --hub
    plug-ins    --resolver, in their order

The registry's names are its own: nothing else answers to them. While it cannot be reached, a name that nobody before it
has is refused, not looked up further down, because it may be the registry's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from inference.resolver import PUSHED, REGISTRY, Resolver
from inference.resolver.cache import FileCache
from inference.resolver.chain import ResolverChain
from inference.resolver.filesystem import FilesystemResolver
from inference.resolver.hub import HubResolver, parse_pins
from inference.resolver.intake import Intake
from inference.resolver.modules import ModulesResolver, parse_modules
from inference.resolver.origins import Origins
from inference.resolver.plugins import open_plugins
from inference.resolver.pushed import PushedResolver
from inference.resolver.registry import RegistryResolver
from inference.resolver.scratch import open_scratch
from inference.resolver.table import Table
from inference.resolver.url import UrlResolver
from inference.settings import Settings
from registry.client import RegistryClient
from rpc.channel import connect
from rpc.security import read_secret

STATE_FILE = "registry.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a worker finds adapters. `client` and `registry` are None without a registry, and the table stays empty."""

    resolver: ResolverChain
    pushed: PushedResolver
    table: Table
    client: RegistryClient | None
    registry: RegistryResolver | None
    cache: FileCache
    scratch: Path
    """A folder that lives as long as the worker."""


async def open_resolution(settings: Settings, digest: str, stack: contextlib.AsyncExitStack) -> Resolution:
    """The resolvers that the settings ask for, for the base model with this digest.

    Raises InvalidRequest, and AdapterLoadFailed for an adapter of the command line.
    """
    state, name = settings.state_dir, settings.base_model_name
    modules = parse_modules(settings.adapters, base_model_name=name)
    table, client = Table(), None
    if settings.registry:
        channel = await stack.enter_async_context(connect(settings.registry, security=settings.registry_security()))
        client = RegistryClient(channel)
        table = await asyncio.to_thread(Table.load, state / STATE_FILE)
    origins = Origins(client.read_blob if client is not None else None)
    cache = await asyncio.to_thread(
        FileCache,
        state / "adapters",
        origins.read,
        capacity_bytes=settings.disk_cache,
        wanted=lambda: {version.digest for version in table.wanted()},
    )
    registry = RegistryResolver(client, table, cache, base_model_digest=digest) if client is not None else None
    scratch = stack.enter_context(open_scratch(state / "scratch"))
    intake = Intake(cache, origins, scratch)

    def is_taken(adapter: str) -> bool:
        return registry is not None and registry.has_name(adapter)

    pushed = PushedResolver(is_taken=lambda adapter: settings.pushes != "any" and is_taken(adapter))
    links: dict[str, Resolver] = {PUSHED: pushed}
    if modules:
        links["modules"] = await asyncio.to_thread(
            ModulesResolver, modules, intake, base_model_digest=digest, is_taken=is_taken
        )
        for module in modules:
            if is_taken(module.name):
                log.warning("%s is the registry's: %s is not served under that name", module.name, module.folder)
    if registry is not None:
        links[REGISTRY] = registry
    base = {"base_model_name": name, "base_model_digest": digest}
    for folder in settings.adapter_dirs:
        links[f"directory {folder}"] = FilesystemResolver(Path(folder), intake, **base)
    for url in settings.adapter_urls:
        if url.startswith("file:///"):
            links[f"URL {url}"] = FilesystemResolver(Path(unquote(urlsplit(url).path)), intake, **base)
        else:
            links[f"URL {url}"] = UrlResolver(url, intake, base_model_name=name, base_model_digest=digest)
    if settings.hub:
        token = read_secret(settings.hub_token_file) if settings.hub_token_file else None
        links["hub"] = HubResolver(parse_pins(settings.hub), intake, base_model_digest=digest, token=token)
    plugins = open_plugins(settings.resolvers, **base, folder=state / "resolvers")
    links |= {f"plug-in {plugin}": resolver for plugin, resolver in plugins.items()}
    return Resolution(ResolverChain(links, base_model_digest=digest), pushed, table, client, registry, cache, scratch)
