"""From what a guest says about an end to what we say: bounded, finite, and in our own words."""

from __future__ import annotations

import dataclasses
import json
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sandbox.certificate import Cause
from sandbox.guest.ending import LOST, SIGNAL_MAX, End, certify, outcome_of_lost, signal_name
from sandbox.result import Outcome
from sandbox.wire import FrameError, decode_json

_HONEST: dict[str, Any] = {"code": 0, "signal": None, "cpu_us": 1}
_EVIDENCE: dict[str, Any] = {"forks_refused": 0, "disk_free_bytes": 2**30, "files_free": 1000}
_COUNTS = st.integers(0, 2**64 - 1)
_ENDS = st.builds(
    End,
    code=st.integers(0, 255),
    signal=st.none(),
    cpu_us=st.integers(0, 10**15),
    oom_kills=_COUNTS,
    peak_memory_bytes=st.none() | _COUNTS,
    evidence=st.none()
    | st.fixed_dictionaries(
        {
            "forks_refused": _COUNTS,
            "disk_free_bytes": _COUNTS,
            "files_free": _COUNTS,
            "kernel_log": st.text(max_size=1000),
        }
    ),
) | st.builds(End, code=st.none(), signal=st.integers(1, SIGNAL_MAX), cpu_us=st.integers(0, 10**15), oom_kills=_COUNTS)


def _parse(payload: bytes) -> End:
    return End.model_validate(decode_json(payload))


@pytest.mark.parametrize(
    "change",
    [
        {"code": 256},
        {"code": -1},
        {"code": "0"},
        {"code": True},
        {"code": 0.0},
        {"signal": 0},
        {"signal": SIGNAL_MAX + 1},
        {"cpu_us": -1},
        {"cpu_us": 1.0},
        {"cpu_us": 10**16},
        {"cpu_us": 1e999},
        {"cpu_us": float("nan")},
        {"peak_memory_bytes": 2**64},
        {"peak_memory_bytes": 10**4000},
        {"oom_kills": -1},
        {"oom_kills": 10**4000},
        {"host_path": "/etc"},
        {"evidence": {}},
        {"evidence": []},
        {"evidence": {**_EVIDENCE, "forks_refused": 10**4000}},
        {"evidence": {**_EVIDENCE, "kernel_log": "x" * 1001}},
        {"evidence": {**_EVIDENCE, "more": 1}},
    ],
)
def test_absurd_end_is_refused(change: dict[str, Any]) -> None:
    """Numbers without bound, numbers that are none, wrong types and further fields: the guest lies."""
    with pytest.raises((FrameError, ValidationError)):
        _parse(json.dumps(_HONEST | change).encode())
    assert _parse(json.dumps(_HONEST).encode()).code == 0
    with pytest.raises(FrameError):
        _parse(b'{"code":0,"code":1,"signal":null,"cpu_us":1}')
    with pytest.raises(ValidationError):
        _parse(b'{"code":0,"signal":null,"cpu_us":1e999}')


@given(_ENDS, st.none() | st.sampled_from(list(Cause)), st.floats(0, 1e6))
def test_verdict_is_one_printable_line_and_plain_data(end: End, ordered: Cause | None, duration: float) -> None:
    """Whatever the guest says, the summary is ours, and all of the certificate can be written as strict JSON."""
    outcome, certificate = certify(end, ordered, "for a reason of ours", duration, None)
    if ordered is None and end.code == 0:
        assert (outcome, certificate) == (Outcome.EXITED, None)
        return
    assert certificate is not None
    assert certificate.summary.isprintable()
    assert len(certificate.summary) < 500
    assert certificate.retry_safe is False
    json.dumps(dataclasses.asdict(certificate), allow_nan=False)


@given(_ENDS)
def test_reason_of_the_host_stands(end: End) -> None:
    """When the host ordered the end, nothing that the guest says changes why."""
    outcome, certificate = certify(end, Cause.DEADLINE, "timed out", 1.0, None)
    assert certificate is not None
    assert (outcome, certificate.cause, certificate.summary) == (Outcome.TIMED_OUT, Cause.DEADLINE, "timed out")


@pytest.mark.parametrize(
    ("fields", "cause", "outcome"),
    [
        ({"code": 3}, Cause.EXIT_STATUS, Outcome.EXITED),
        ({"code": None, "signal": 11}, Cause.SIGNAL, Outcome.SIGNALED),
        ({"code": None, "signal": signal.SIGKILL, "oom_kills": 1}, Cause.OUT_OF_MEMORY, Outcome.OUT_OF_MEMORY),
        ({"code": 137, "oom_kills": 1}, Cause.OUT_OF_MEMORY, Outcome.OUT_OF_MEMORY),
        ({"code": 1, "oom_kills": 1}, Cause.EXIT_STATUS, Outcome.EXITED),
        ({"code": None, "signal": signal.SIGXCPU}, Cause.CPU_LIMIT, Outcome.SIGNALED),
        ({"code": None, "signal": signal.SIGXFSZ}, Cause.FILE_SIZE_LIMIT, Outcome.SIGNALED),
        ({"code": 1, "evidence": {**_EVIDENCE, "disk_free_bytes": 0}}, Cause.DISK_FULL, Outcome.EXITED),
        ({"code": 1, "evidence": {**_EVIDENCE, "forks_refused": 2}}, Cause.PROCESS_LIMIT, Outcome.EXITED),
        ({"code": 1, "evidence": _EVIDENCE}, Cause.EXIT_STATUS, Outcome.EXITED),
    ],
)
def test_cause_follows_from_the_evidence(fields: dict[str, Any], cause: Cause, outcome: Outcome) -> None:
    """Each end has one cause; how the program exited is never turned into something else."""
    verdict, certificate = certify(_parse(json.dumps(_HONEST | fields).encode()), None, "", 1.0, None)
    assert certificate is not None
    assert (verdict, certificate.cause) == (outcome, cause)


@pytest.mark.parametrize("cause", Cause)
def test_lost_vm_is_never_an_exit(cause: Cause) -> None:
    """Whatever made the VM go, the outcome does not say that the program ended by itself."""
    outcome = outcome_of_lost(cause)
    assert outcome not in {Outcome.EXITED, Outcome.SIGNALED}
    if cause in {Cause.PROTOCOL, Cause.CHANNEL, Cause.QEMU_KILLED, Cause.RELEASED, Cause.KERNEL_PANIC}:
        assert outcome in LOST


def test_every_signal_has_a_name() -> None:
    """Also those that this host's Python does not know."""
    assert signal_name(15) == "SIGTERM"
    assert all(signal_name(number).isprintable() for number in range(1, SIGNAL_MAX + 1))
