"""Values as JSON: what `to_dict` and `sandbox exec --json` give fits the published schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sandbox import LifeEvent, PoolConfig, VMPool
from sandbox.vm import VM

_SCHEMA = json.loads((Path(__file__).parents[2] / "docs/result.schema.json").read_text())


def fits(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document, through JSON, that fits the schema."""
    again: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    Draft202012Validator.check_schema(_SCHEMA)
    assert [error.message for error in Draft202012Validator(_SCHEMA).iter_errors(again)] == []
    assert again == document
    return again


def test_the_schema_notices() -> None:
    """Control: a key too many, or one too few, does not fit."""
    for document in ({"kind": "exit", "exit_code": 0}, {"kind": "infra", "exit_code": 125, "error": {}, "more": 1}):
        assert list(Draft202012Validator(_SCHEMA).iter_errors(document))


async def test_results_of_all_kinds(vm: VM) -> None:
    """Text, bytes that are none, a status, a signal, a time-out and a stream that was cut."""
    document = fits((await vm.run("import sys\nprint('ä')\nsys.exit(3)")).to_dict())
    assert (document["kind"], document["exit_code"], document["stdout"], document["stdout_bytes"]) == (
        "exit",
        3,
        "ä\n",
        3,
    )
    assert "stdout_base64" not in document
    document = fits((await vm.exec("printf '\\377x'; kill -TERM $$")).to_dict())
    assert (document["kind"], document["exit_code"], document["stdout"], document["stdout_base64"]) == (
        *("signal", 143),
        *("\N{REPLACEMENT CHARACTER}x", "/3g="),
    )
    document = fits((await vm.exec("echo abc >&2; sleep 1000", timeout=1, capture_bytes=2)).to_dict())
    assert (document["kind"], document["exit_code"], document["stderr"], document["stderr_truncated"]) == (
        *("timeout", 124),
        *("ab", True),
    )
    assert document["certificate"]["cause"] == "deadline"


async def test_cells(vm: VM) -> None:
    """Their values, and an exception in the guest's words."""
    async with vm.context() as context:
        document = fits((await context.run("1 + 1")).to_dict())
        assert document["value"]["text/plain"] == "2"
        document = fits((await context.run("1 / 0")).to_dict())
        assert document["error"]["name"] == "ZeroDivisionError"
        assert document["stdout"] == ""


async def test_events_and_receipts() -> None:
    """Every event of a pool's life, and what a VM has proved."""
    heard: list[LifeEvent] = []
    async with VMPool(PoolConfig(min_size=1), observers=[heard.append]) as pool, pool.acquire() as vm:
        await vm.run("1")
        assert vm.receipt is not None
        assert json.loads(json.dumps(vm.receipt.to_dict()))["hostname"] == vm.receipt.hostname
    for event in heard:
        document = json.loads(json.dumps(event.to_dict(), allow_nan=False))
        assert (document["kind"], document["pool"]) == (event.kind.value, pool.id)
        assert document["at"] == event.at.isoformat()


@pytest.mark.parametrize(
    "arguments", [["-c", "print(1)"], ["--", "false"], ["no such file"], ["--memory", "x", "-c", "1"]]
)
def test_the_command_line_prints_the_same(arguments: list[str]) -> None:
    """A failure of ours fits as well."""
    command = [sys.executable, "-m", "sandbox", "exec", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    assert fits(json.loads(done.stdout))["exit_code"] == done.returncode
