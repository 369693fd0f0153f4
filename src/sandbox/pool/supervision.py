"""Keep what goes wrong in one task of a pool from ending the others, and the leases with them."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import anyio

from sandbox.errors import SandboxError, StartError
from sandbox.event import EventKind
from sandbox.hypervisor.threads import telling_shortage
from sandbox.pool.broadcast import Broadcast
from sandbox.pool.policy import back_off


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Raise every ordinary exception within the context as one of ours: callers need to know no others.

    An exception that is no `SandboxError` becomes a `StartError` that says where it comes from. Cancellation and
    `KeyboardInterrupt` pass.
    """
    try:
        with telling_shortage():
            yield
    except SandboxError:
        raise
    except OSError as error:
        raise StartError(f"{what} failed: {error}") from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        raise StartError(
            f"{what} failed with {type(error).__name__}: {error} ({where}); please report this as a defect"
        ) from error


async def supervise(task: str, step: Callable[[], Awaitable[None]], broadcast: Broadcast) -> NoReturn:
    """Do `step` again and again until cancelled. When it fails, tell `TASK_FAILED`, and wait longer each time."""
    failures = 0
    while True:
        try:
            with contained(task):
                await step()
            failures = 0
        except SandboxError as error:
            failures += 1
            broadcast.tell(EventKind.TASK_FAILED, task=task, error=str(error), code=error.code, failures=failures)
            await anyio.sleep(back_off(failures))
