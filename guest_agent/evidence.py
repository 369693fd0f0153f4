"""What the kernel knows about an end that was not a good one."""

import os

_KMSG = "/dev/kmsg"
_MARKS = ("Out of memory", "oom-kill", "Killed process")
_LINE_CHARACTERS = 300
_MOST_RECORDS = 5000  # root in the guest may write faster than we read

_log = None


def prepare():
    """Start to read the kernel's log here: what was before is not about user code."""
    global _log  # noqa: PLW0603 - one process, one log
    _log = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.lseek(_log, 0, os.SEEK_END)


def collect(group, oom_kills):
    """Return counters that tell why: processes refused, bytes free on the writable disk, and the log's last word."""
    disk = os.statvfs("/")
    found = {
        "forks_refused": group.forks_refused(),
        "disk_free_bytes": disk.f_bavail * disk.f_bsize,
        "files_free": disk.f_favail,
    }
    if oom_kills and (line := _last_kill()):
        found["kernel_log"] = line
    return found


def _last_kill():
    last = ""
    for _ in range(_MOST_RECORDS):
        try:
            record = os.read(_log, 8192).decode("utf-8", "replace")
        except BlockingIOError:
            return last
        except OSError:  # records were overwritten before we read them
            continue
        line = record.partition(";")[2].partition("\n")[0]
        if any(mark in line for mark in _MARKS):
            last = line[:_LINE_CHARACTERS]
    return last
