"""What the source says about itself, as rows of a table."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple


class Described(NamedTuple):
    name: str
    text: str


def table(name: str, meaning: str, rows: Iterable[Described]) -> str:
    return f"| {name} | {meaning} |\n|---|---|\n{table_rows(rows)}"


def table_rows(rows: Iterable[Described]) -> str:
    return "\n".join(f"| `{row.name}` | {' '.join(row.text.split())} |" for row in rows)


def documented(module: ModuleType, class_name: str) -> list[Described]:
    """Return the fields or members of a class that have a string literal below them."""
    body = next(
        node.body
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    return [
        Described(name, text)
        for statement, below in itertools.pairwise(body)
        if (name := _assigned(statement)) and (text := _literal(below))
    ]


def members(module: ModuleType, enum_name: str) -> list[Described]:
    enum = getattr(module, enum_name)
    return [Described(enum[row.name].value, row.text) for row in documented(module, enum_name)]


def _assigned(statement: ast.stmt) -> str | None:
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return None


def _literal(statement: ast.stmt) -> str | None:
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
    return None


def properties(owner: type) -> list[Described]:
    return [
        Described(name, inspect.getdoc(value) or "")
        for name, value in vars(owner).items()
        if isinstance(value, property)
    ]
