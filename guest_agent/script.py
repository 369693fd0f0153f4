"""Run Python code in a fork of the warm interpreter, as `python3 FILE ARGS` would."""

import _signal
import atexit
import io
import os
import sys
import threading
import traceback
import types

from boot import SCRIPTS

_NAME = "script.py"
_opened = None


def make_room():
    """Make the file of this process's script before anything is known of it; return its descriptor."""
    directory = f"{SCRIPTS}/{os.getpid()}"
    try:
        os.mkdir(directory, mode=0o755)
    except FileExistsError:  # an earlier process had this pid
        pass
    room = os.open(f"{directory}/{_NAME}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    os.write(room, b"\n")  # the file has its first page now
    return room


def place(room, name, data):
    """Write the code to that file, so that tracebacks, `__file__` and multiprocessing find it; return its path."""
    directory = f"{SCRIPTS}/{os.getpid()}"
    path = f"{directory}/{os.path.basename(name) or _NAME}"
    if name != _NAME:
        os.rename(f"{directory}/{_NAME}", path)
    if not data:
        os.ftruncate(room, 0)
    written = 0
    while written < len(data):
        written += os.pwrite(room, data[written:], written)
    os.close(room)
    return path


def clear(pid):
    """Remove what a process that has ended had its script in."""
    directory = f"{SCRIPTS}/{pid}"
    try:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except OSError:  # there is none, or root in the guest has put something there
        pass


def run(path, data, arguments, begin):
    """Execute the file as `__main__` and return the exit status that an interpreter would give.

    `begin` is called when it is loaded, just before it runs.
    """
    become_interpreter()
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    status = _execute(path, data, main, begin)
    return finalize(status)


def become_interpreter():
    """Leave nothing of the agent to be seen, and give the process what an interpreter starts with."""
    forget_agent()
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_IGN)


def forget_agent():
    """Do what needs time and no request. May be called twice."""
    if sys.stdin is not None and sys.stdin is _opened:
        return
    home = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != home]
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(home + os.sep):
            del sys.modules[name]
    _open_stdio()


def _open_stdio():
    """Fresh streams on the new descriptors; lines leave as soon as they are complete."""
    global _opened  # noqa: PLW0603 - a process has one standard input
    _opened = sys.stdin = sys.__stdin__ = io.TextIOWrapper(
        open(0, "rb", closefd=False), encoding="utf-8", errors="surrogateescape"
    )
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(
        open(1, "wb", closefd=False), encoding="utf-8", errors="surrogateescape", line_buffering=True
    )
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(
        open(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


def _execute(path, data, main, begin):
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    try:
        program = compile(data, path, "exec")
        begin()
        exec(program, main.__dict__)
    except SystemExit as exit_:
        return _exit_status(exit_.code)
    except KeyboardInterrupt:
        traceback.print_exc()
        finalize(130)
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        os.kill(os.getpid(), _signal.SIGINT)
    except BaseException as error:
        # Skip this function's own frame: the trace begins in the user's file.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _exit_status(code):
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def finalize(status):
    """What `Py_FinalizeEx` promises to user code: threads joined, exit handlers run, streams flushed."""
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120
    return status
