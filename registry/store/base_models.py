"""Base models in the database: create once, read, list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import insert, select

from registry.answers import CreatedBaseModel
from registry.documents import encode
from registry.errors import BaseModelExists, BaseModelNotFound
from registry.models import BaseModelParentRow, BaseModelRow
from registry.resources import BaseModel, BaseModelCreated, LineageKey, LineageKind
from registry.store.database import Call, Database, Write
from registry.store.lineage import parents_of, refuse_cycle
from registry.store.paging import Page, PageRequest, make_page
from registry.store.rows import load_base_models, modules_of


class BaseModels:
    """The base models of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, call: Call, base_model: BaseModel) -> CreatedBaseModel:
        """Adds it, or returns the one under the same name and digest. Raises BaseModelExists and LineageCycle."""

        async def body(write: Write) -> CreatedBaseModel:
            found = await write.session.get(BaseModelRow, base_model.name)
            if found is not None:
                if found.digest != base_model.digest:
                    raise BaseModelExists(
                        f"base model {base_model.name!r} exists with digest {found.digest}, not {base_model.digest}; "
                        "take another name"
                    )
                stored = (await load_base_models(write.session, [found]))[0]
                modules = await write.session.scalar(
                    select(BaseModelRow.modules).where(BaseModelRow.name == base_model.name)
                )
                return CreatedBaseModel(replace(stored, modules=modules_of(modules)), write.head, created=False)
            parents = parents_of((one.base_model, one.adapter_version) for one in base_model.parents)
            await refuse_cycle(write.session, LineageKey(LineageKind.BASE_MODEL, base_model.name), parents)
            revision = await write.advance()
            stored = replace(base_model, create_time=revision.time)
            await write.session.execute(
                insert(BaseModelRow).values(
                    name=stored.name,
                    digest=stored.digest,
                    config_digest=stored.config_digest,
                    weights_digest=stored.weights_digest,
                    tokenizer_digest=stored.tokenizer_digest,
                    architecture=stored.architecture,
                    manifest=encode(stored.manifest),
                    modules=[[module.name, module.out_features, module.in_features] for module in stored.modules],
                    create_time=revision.time,
                    revision=revision.number,
                )
            )
            if stored.parents:
                await write.session.execute(
                    insert(BaseModelParentRow),
                    [
                        {
                            "child": stored.name,
                            "ordinal": ordinal,
                            "parent": parent.base_model,
                            "relation": parent.relation.value,
                            "adapter_version": parent.adapter_version,
                        }
                        for ordinal, parent in enumerate(stored.parents)
                    ],
                )
            brief = replace(stored, modules=())
            await write.record(
                revision,
                [BaseModelCreated(brief)],
                base_model=stored.name,
                resource=stored.name,
                before=None,
                after=brief,
            )
            return CreatedBaseModel(stored, revision.number, created=True)

        return await self._database.write(call, CreatedBaseModel, body)

    async def get(self, name: str) -> BaseModel:
        """One base model with its modules. Raises BaseModelNotFound."""
        async with self._database.read() as session:
            row = (
                await session.execute(select(BaseModelRow, BaseModelRow.modules).where(BaseModelRow.name == name))
            ).one_or_none()
            if row is None:
                raise BaseModelNotFound(f"no base model {name!r}; add it first")
            found = (await load_base_models(session, [row[0]]))[0]
            return replace(found, modules=modules_of(row[1]))

    async def shapes(self, name: str) -> Mapping[str, tuple[int, int]]:
        """The modules of a base model by name, (out_features, in_features). Raises BaseModelNotFound."""
        rows = await self._database.run(select(BaseModelRow.modules).where(BaseModelRow.name == name))
        if not rows:
            raise BaseModelNotFound(f"no base model {name!r}; add it first")
        return {module.name: (module.out_features, module.in_features) for module in modules_of(rows[0].modules)}

    async def list(self, request: PageRequest) -> Page[BaseModel]:
        """Base models by name, without their modules."""
        listing = "base_models"
        after = request.after(listing, str)
        query = select(BaseModelRow).order_by(BaseModelRow.name).limit(request.limit + 1)
        if after is not None:
            query = query.where(BaseModelRow.name > after)
        async with self._database.read() as session:
            found = await load_base_models(session, list((await session.scalars(query)).all()))
        return make_page(request, listing, found, lambda one: one.name)
