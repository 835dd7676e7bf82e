"""The source's views on a target that takes all columns of what it takes.

A view is made after the tables, behind those views that it reads, where its name is one that the target's patterns take
and everything that it reads is there. One that cannot be made (a function that the target lacks) is a warning with its
SQL. Views that are there are left as they are: people change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from cdc.bootstrap import building
from cdc.bootstrap.building import BuildTarget, Work, is_beside
from cdc.bootstrap.table_definitions import comment_work
from cdc.errors import SetupError
from cdc.identifiers import quote_qualified
from cdc.routing.router import route_of
from cdc.source.definitions import SourceComment, SourceView
from cdc.target import definitions
from cdc.target.session import Session


def takes_views(target: BuildTarget) -> bool:
    """Whether the source's views belong there: not where columns are listed, and not beside another generation."""
    return target.config.follows and target.config.columns == "all" and not any(map(is_beside, target.routes))


def view_works(
    target: BuildTarget,
    views: Sequence[SourceView],
    comments: Mapping[int, Sequence[SourceComment]],
    warn: Callable[[str], None],
) -> Iterator[Work]:
    """The views that the target gets, in the order of ``views``: each behind those that it reads."""
    left_out = []
    for place, view in enumerate(views):
        if route_of(target.config, view.schema, view.name) is None:
            continue
        if view.is_materialized:
            left_out.append(view.qualified_name)
            continue
        # The first of the sizes comes first: large ones do.
        yield _view_work(target, view, len(views) - place)
        if view.oid in comments:
            yield comment_work(target, (view.schema, view.name), view.qualified_name, comments[view.oid], is_view=True)
    if left_out:
        warn(
            f"target {target.access.name}: materialized views of the source are not made there: {', '.join(left_out)}; "
            "where one is needed, put it into a file of the enrichment, with -- refresh: in its head"
        )


def create_view_sql(view: SourceView) -> str:
    """The statement that makes the view."""
    options = f" WITH ({', '.join(view.options)})" if view.options else ""
    query = view.query.strip().removesuffix(";")
    return f"CREATE VIEW {quote_qualified(view.schema, view.name)}{options} AS {query}"


def _view_work(target: BuildTarget, view: SourceView, size: int) -> Work:
    sql = create_view_sql(view)

    async def is_there(session: Session) -> bool:
        return not await definitions.lacking_relations(session, [(view.schema, view.name)])

    async def make(session: Session) -> bool:
        lacking = await definitions.lacking_relations(session, view.reads)
        if lacking:
            names = ", ".join(f"{schema}.{name}" for schema, name in lacking)
            raise SetupError(f"{session.where}: it reads what is not there: {names}.")
        return await definitions.create_view(session, view.schema, view.name, sql)

    return Work(
        target,
        "view",
        view.qualified_name,
        sql,
        building.VIEWS,
        size,
        frozenset((target.access.name, *name) for name in (*view.reads, (view.schema, view.name))),
        is_there,
        make,
    )
