"""Import libvirt with its log messages going to our logger instead of standard error.

libvirt reads its log settings when it is first imported. It writes to a pipe of ours; one daemon thread turns each
line into an event. Errors reach us a second time as exceptions, so all of this is for diagnosis only.
"""

from __future__ import annotations

import os
import re
import threading

from sandbox.log import log

_LINE = re.compile(r"^\S+ \S+: \d+: (\w+) : (.*)$")


def _forward(read_end: int) -> None:
    with os.fdopen(read_end, errors="replace") as lines:
        for line in lines:
            match = _LINE.match(line.rstrip())
            if match is not None:
                log.debug("libvirt", level_of_libvirt=match[1], message=match[2][:500])


if "LIBVIRT_LOG_OUTPUTS" in os.environ:  # somebody is debugging libvirt itself
    import libvirt
else:
    _read_end, _write_end = os.pipe()
    threading.Thread(target=_forward, args=(_read_end,), name="libvirt-log", daemon=True).start()
    os.environ["LIBVIRT_LOG_OUTPUTS"] = f"3:file:/dev/fd/{_write_end}"
    import libvirt

    del os.environ["LIBVIRT_LOG_OUTPUTS"]

libvirt.registerErrorHandler(lambda _context, error: log.debug("libvirt_error", message=error[2]), None)

__all__ = ["libvirt"]
