"""Models whose fields say what they are: in `meanings`, in a JSON schema and in `sandbox config show`.

The words are the docstrings below the fields. They are looked for when somebody asks: with every import they would cost
more than all else that a model costs.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic_core import CoreSchema


class Described(BaseModel):
    """A model with a docstring below each of its fields."""

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Return what each field is, by its name."""
        return {name: _docstrings(model)[name] for model in cls.__mro__[::-1] for name in _docstrings(model)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        meanings = cls.meanings()
        for name, field in schema.get("properties", {}).items():
            if name in meanings:
                field["description"] = meanings[name]
        return schema


@cache
def _docstrings(model: type) -> dict[str, str]:
    if not issubclass(model, Described) or model is Described:
        return {}
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
