"""The kernel's limits for one process, as programs start with them and as a request may narrow them."""

import math
import resource

OPEN_FILES, OPEN_FILES_USUAL = 65536, 1024
PIDS_MAX = 1024


def narrow(limits):
    """Give this process, which is to become the program, what a request allows it."""
    if files := limits.get("open_files"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if limits.get("cpu_seconds"):
        seconds = max(1, math.ceil(limits["cpu_seconds"]))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if limits.get("file_bytes") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"],) * 2)
