"""What the fields of a model are: the docstrings below them, in a JSON schema and in `sandbox config show`.

They are looked for when somebody asks: with every import they would cost more than all else that a model costs.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic_core import CoreSchema


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field, by its name, those of base classes first."""
    bases = [base for base in reversed(model.__mro__) if issubclass(base, BaseModel) and base is not BaseModel]
    return {name: meaning for base in bases for name, meaning in _docstrings(base).items()}


def described(model: type[BaseModel], schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
    """Return the JSON schema of a model with the meanings of its fields."""
    found = handler.resolve_ref_schema(handler(schema))
    said = meanings(model)
    for name, field in found.get("properties", {}).items():
        if name in said:
            field["description"] = said[name]
    return found


@cache
def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = inspect.cleandoc(below.value.value)
    return found
