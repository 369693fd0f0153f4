"""What EXITED says: how a program ended, what it took, and what speaks for a cause."""

import os
import time

import evidence


def of_program(status, cpu_us, group, stamps):
    """Return the object for a program's end, from its wait status; `stamps` is None unless the execution is traced."""
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    said = _begin(code, os.WTERMSIG(status) if code is None else None)
    if cpu_us is not None:
        said += f',"cpu_us":{cpu_us}'
    memory = group.memory()
    if memory is not None:
        said += f',"peak_memory_bytes":{memory}'
    if status:
        kills = group.oom_kills()
        said += f',"oom_kills":{kills},"evidence":{_json(evidence.collect(group, kills))}'
    if stamps is not None:
        stamps["told"] = time.monotonic()
        ahead = time.time() - time.monotonic()
        said += f',"stamps":{_json({name: int((stamp + ahead) * 1e9) for name, stamp in stamps.items()})}'
    return said + "}"


def of_refusal(code, lack):
    """Return the object for a program that did not start; `lack` says what the guest had no room for, or is None."""
    return _begin(code, None) + (f',"refused":{_json(lack)}' if lack is not None else "") + "}"


def _begin(code, signal):
    """Return the first fields. An emulated guest writes them sooner than an encoder does."""
    return f'{{"code":{_json(code)},"signal":{_json(signal)}'


def _json(value):
    if value is None:
        return "null"
    if isinstance(value, int):
        return str(value)
    import json  # noqa: PLC0415 - a good end needs none

    return json.dumps(value)
