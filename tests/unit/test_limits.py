"""Limits of one execution: what cannot be meant is refused before a guest hears of it."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from sandbox.config import HostConfig, Limits, PoolConfig, TemplateConfig, TemplateTarget
from sandbox.errors import ConfigError


@pytest.mark.parametrize("name", ["cpus", "cpu_seconds"])
@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e305, 0.0, -1.0])
def test_times_that_cannot_be_are_refused(name: str, number: float) -> None:
    """Processors and seconds are finite numbers above zero that a kernel can count."""
    wrong: dict[str, Any] = {name: number}
    with pytest.raises(ConfigError, match=f"Limits: {name}: "):
        Limits(**wrong)
    for right in (0.5, 1000.0):
        given: dict[str, Any] = {name: right}
        assert Limits(**given).model_dump(exclude_none=True) == given


@pytest.mark.parametrize(
    ("name", "most"),
    [("memory_bytes", 2**63 - 1), ("processes", 2**22), ("open_files", 2**16), ("file_bytes", 2**63 - 1)],
)
def test_counts_beyond_those_of_a_kernel_are_refused(name: str, most: int) -> None:
    """A guest could not set them, or would take them for something else."""
    given: dict[str, Any] = {name: most}
    assert Limits(**given).model_dump(exclude_none=True) == given
    with pytest.raises(ConfigError, match=f"Limits: {name}: "):
        Limits(**{key: count + 1 for key, count in given.items()})


NUMBERS = [
    (model, name)
    for model in (HostConfig, TemplateConfig, Limits, TemplateTarget, PoolConfig)
    for name, field in model.model_fields.items()
    if {int, float} & {field.annotation, *get_args(field.annotation)}
]


@pytest.mark.parametrize("wrong", [True, False, math.nan, math.inf, -math.inf, "many"])
@pytest.mark.parametrize(("model", "name"), NUMBERS, ids=[f"{model.__name__}.{name}" for model, name in NUMBERS])
def test_no_number_of_a_configuration_is_anything_else(model: type[BaseModel], name: str, wrong: object) -> None:
    """Truth values, NaN, infinities and words are refused by name, in whatever field they are."""
    with pytest.raises(ConfigError, match=name):
        model(**{name: wrong})
