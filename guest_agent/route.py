"""How a request is served: by a fork of the warm interpreter, or by a command of its own."""

import os

import spawn

_FRESH = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "HOME", "GCONV_PATH", "LOCPATH", "NLSPATH")
"""Variables that begin so are read when an interpreter starts: the warm one would not see them."""
_WARM, _SERVERS = ("python", "interpreter"), ("files", "watch")
_CONTEXT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "interpreter_main.py")


def is_for_zygote(request):
    """Return whether a request is served by a fork of the warm interpreter, or needs a forked child for its limits."""
    return not spawn.can(request) or request["op"] in _SERVERS or (request["op"] in _WARM and not _needs_fresh(request))


def command(request, path):
    """Return what is to be executed, with a script's path; None for what a fork of the warm interpreter does."""
    operation, argv = request["op"], request.get("argv") or []
    if operation == "argv":
        return argv
    if operation == "script":
        return [*request["interpreter"], path, *argv]
    if _needs_fresh(request):
        return ["python3", "-u", _CONTEXT if operation == "interpreter" else path, *argv]
    return None


def _needs_fresh(request):
    return request["op"] in _WARM and any(name.startswith(_FRESH) for name in request.get("env") or ())
