"""What a guest says, as models: checked on arrival, and cheap to refuse, however wrong it is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class Said(BaseModel):
    """Base of all that a guest says. More fields than there are give one error, instead of one for each of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, fields: object) -> object:
        if isinstance(fields, dict) and len(fields) > len(cls.model_fields):
            raise ValueError(f"{len(fields)} fields came, at most {len(cls.model_fields)} are known")
        return fields


def fault(error: ValidationError) -> str:
    """Return what was wrong first, without what was said: that may be long, and is the guest's."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:50] for part in first["loc"][:5])
    return f"{where or error.title}: {first['msg'][:200]}"
