"""Results of other tools: written once each, read in the order of import, and kept apart from your own runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, func, select

from lorastudy.errors import StoreError
from lorastudy.store import rows
from lorastudy.store.schema import imported_results, imports, suites
from lorastudy.store.views import ImportedResult, ImportedScore
from lorastudy.suite.experiment import canonical_json, tagged_hash


def add(connection: Connection, results: Sequence[ImportedResult], *, at: str) -> int:
    """Store the results that are not there yet; return their number.

    Raises:
        StoreError: a suite of your own runs has the name.
    """
    for suite_name in dict.fromkeys(result.suite_name for result in results):
        if rows.exists(connection, suites, key={"suite_name": suite_name}):
            raise StoreError(
                f"{suite_name!r} is a suite of runs of your own; import under another name, so that the two are not mixed up"
            )
    known = set(connection.execute(select(imported_results.c.result_id)).scalars())
    first = connection.execute(select(func.count()).select_from(imported_results)).scalar_one()
    new = {result.id: result for result in results if result.id not in known}
    _add_imports(connection, list(new.values()), at=at)
    values = [
        _row(result, result_id=result_id, position=first + number)
        for number, (result_id, result) in enumerate(new.items())
    ]
    rows.add(connection, imported_results, rows=values)
    return len(new)


def refuse_name(connection: Connection, suite_name: str) -> None:
    """Check that no imported results have the name.

    Raises:
        StoreError: some do.
    """
    if rows.exists(connection, imports, key={"suite_name": suite_name}):
        raise StoreError(
            f"{suite_name!r} holds imported results; give the suite another name, so that the two are not mixed up"
        )


def results(connection: Connection, suite_name: str | None = None) -> list[ImportedResult]:
    """The imported results in order, of one suite or of all."""
    shared = [column for column in imports.c if column.name not in {"import_id", rows.HASH_COLUMN}]
    statement = (
        select(imported_results, *shared)
        .join(imports, imports.c.import_id == imported_results.c.import_id)
        .order_by(imported_results.c.position)
    )
    if suite_name is not None:
        statement = statement.where(imports.c.suite_name == suite_name)
    return [_result(row) for row in rows.read(connection, statement)]


def _add_imports(connection: Connection, new: Sequence[ImportedResult], *, at: str) -> None:
    for result in new:
        key = {"import_id": _import_id(result)}
        if not rows.exists(connection, imports, key=key):
            shared = ("suite_name", "tool", "file", "file_sha256")
            values = {name: getattr(result, name) for name in shared}
            rows.add(connection, imports, rows=[{**key, **values, "imported_at": at}])


def _import_id(result: ImportedResult) -> str:
    return tagged_hash("import", [result.suite_name, result.tool, result.file, result.file_sha256])


def _row(result: ImportedResult, *, result_id: str, position: int) -> dict[str, Any]:
    return {
        "result_id": result_id,
        "import_id": _import_id(result),
        "position": position,
        "location": result.location,
        "arm": result.arm,
        "seed": result.seed,
        "config": canonical_json(
            {"settings": result.settings, "sources": result.sources, "is_diverged": result.is_diverged}
        ),
        "scores": canonical_json([asdict(score) for score in result.scores]),
        "costs": canonical_json(result.costs),
    }


def _result(row: dict[str, Any]) -> ImportedResult:
    names = ("suite_name", "arm", "seed", "tool", "file", "file_sha256", "location", "imported_at")
    return ImportedResult(
        **json.loads(row["config"]),
        **{name: row[name] for name in names},
        scores=tuple(ImportedScore(**score) for score in json.loads(row["scores"])),
        costs=json.loads(row["costs"]),
    )
