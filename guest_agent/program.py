"""A script in Python: run as `python3 -u FILE ARGUMENTS` would, in a fork of an interpreter that is warm.

Reading, running and reporting follow CPython's `pymain_run_python`, `_PyErr_PrintEx` and `Py_FinalizeEx`. The end
differs in one thing: what every interpreter has (the standard library, built-in types) is not taken apart object by
object: each page of memory that a fork touches costs it a fault, which takes longer than most programs.
"""

import _signal
import _thread
import builtins
import ctypes
import gc
import os
import site
import sys
import types
import weakref
from importlib.machinery import SourceFileLoader

from hidden import hidden

_HOME = os.path.dirname(os.path.abspath(__file__))
_WORKSPACE = "/workspace"
_OF_SYS_TO_CLEAR = (
    *("path", "argv", "ps1", "ps2", "last_type", "last_value", "last_traceback", "last_exc"),
    *("path_hooks", "path_importer_cache", "meta_path", "__interactivehook__"),
)
_FLUSH_FAILED = 120
_PR_SET_MM = 35
_ARG_START, _ARG_END, _ENV_START, _ENV_END = 8, 9, 10, 11
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fopen.restype = ctypes.c_void_p
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
_modules = sys.modules
_own = frozenset()
"""The modules that the zygote has loaded; those that a program adds are taken down at its end."""
_names_of_sys, _of_sys = frozenset(), 0
_TRUE = (True).__bool__
_main = None  # the program's module, until it is taken down
_kept = []  # what every interpreter has, at the end: to take it apart is long work that no program notices
_command = memoryview(b"")  # the command line that the kernel shows, and where it is
_command_address = 0
_COMMAND_BYTES = 32 * 1024
_SHOWN_FIRST = "sandbox-agent/zygote"
_shown_bytes = 0
_shown = []  # what the kernel shows as command line and environment of this process


def prepare():
    """Do once, in the zygote, what every child finds done."""
    hide()
    global _command, _command_address  # noqa: PLW0603 - one zygote
    _show(_ENV_START, _ENV_END, b"".join(os.fsencode(f"{name}={value}\0") for name, value in os.environ.items()))
    _command_address = _show(_ARG_START, _ARG_END, bytes(_COMMAND_BYTES + 1))
    _command = memoryview(_shown[-1]).cast("B")
    show_command(["python3", "-u", _SHOWN_FIRST])


def hide():
    """Leave nothing of ours to be seen by programs."""
    global _own, _names_of_sys, _of_sys  # noqa: PLW0603 - one interpreter
    sys.path[:] = [entry for entry in sys.path if entry != _HOME]
    sys.path_importer_cache.pop(_HOME, None)
    for name, module in list(_modules.items()):
        is_ours = (getattr(module, "__file__", None) or "").startswith(_HOME + os.sep)
        if name != "__main__" and (is_ours or name in ("ctypes", "ctypes._endian", "_ctypes")):
            del _modules[name]
    _own = frozenset(_modules)
    _names_of_sys = frozenset(vars(sys)) | {"last_type", "last_value", "last_traceback"}
    _of_sys = len(vars(sys))


def show_command(argv):
    """Have the kernel show this process as if it had been started by this command. Needs root."""
    global _shown_bytes  # noqa: PLW0603 - each process has one command line
    text = "\0".join(argv).encode("utf-8", "surrogateescape")[:_COMMAND_BYTES] + b"\0"
    _command[: len(text)] = text
    if len(text) != _shown_bytes:  # of a script without a name, as long as what is shown before
        _libc.prctl(_PR_SET_MM, _ARG_END, _command_address + len(text), 0, 0)
        _shown_bytes = len(text)


def _show(start, end, text):
    """Have the kernel take a text of ours for the command line or the environment; return where it is."""
    text = ctypes.create_string_buffer(text)
    address = ctypes.addressof(text)
    # In this order the begin is never behind the end: what is on the heap lies below what is on the stack.
    _libc.prctl(_PR_SET_MM, start, address, 0, 0)
    _libc.prctl(_PR_SET_MM, end, address + len(text) - 1, 0, 0)
    _shown.append(text)
    return address


def find_user_packages(account):
    """Let the packages that this user has installed count, as the start of an interpreter does."""
    base = f"{account.pw_dir}/.local"
    if base != site.USER_BASE:
        sys.path[:] = [entry for entry in sys.path if entry != site.USER_SITE]
        site.USER_BASE = base
        site.USER_SITE = f"{base}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    try:
        os.stat(site.USER_SITE)
    except OSError:
        return
    if site.USER_SITE in sys.path:
        return
    ends = ("dist-packages", "site-packages")
    place = next((index for index, entry in enumerate(sys.path) if entry.endswith(ends)), len(sys.path))
    behind = sys.path[place:]
    del sys.path[place:]
    site.addsitedir(site.USER_SITE)
    sys.path += behind


@hidden
def run(path, fields, begin):
    """Run the script as `__main__` and end this process as an interpreter would. Never returns."""
    main = vars(_main)
    code = _load(path, fields, main)
    begin()
    status, is_small = 1, False
    if code is not None:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        before = gc.get_count()
        error = _execute(code, main)
        after = gc.get_count()
        is_small = after[0] <= before[0] and after[1:] == before[1:]
        status = 0 if error is None else _report(error)
        main.pop("__file__", None)
        main.pop("__cached__", None)
        error = None
    code = main = fields = begin = None
    end(status, is_small=is_small)


@hidden
def _execute(code, main):
    """Run the code; return the exception that nothing in it has caught. It is not being handled any more then."""
    try:
        exec(code, main)
    except BaseException as error:
        return error


def make_main():
    """Make ahead the module that a program's names are in, with what it has in every interpreter."""
    global _main  # noqa: PLW0603 - each child has one
    _main = _modules["__main__"] = types.ModuleType("__main__")
    vars(_main).update(__loader__=SourceFileLoader("__main__", ""), __annotations__={}, __builtins__=builtins)


def _load(path, fields, main):
    """Return the script's code; None if it is none, which has been said then."""
    sys.argv[:] = [path, *fields["argv"]]
    sys.orig_argv[:] = ["python3", "-u", *sys.argv]
    directory = path.rpartition("/")[0]
    sys.path.insert(0, directory if directory == _WORKSPACE else os.path.realpath(directory))
    main["__loader__"].path = main["__file__"] = path
    main["__cached__"] = None
    try:
        return compile(fields["data"], path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        pass
    del main["__file__"], main["__cached__"]
    # CPython says in its own words what is wrong when it reads the file itself.
    name = os.fsencode(path)
    ctypes.pythonapi.PyRun_SimpleFileExFlags(ctypes.c_void_p(_libc.fopen(name, b"rb")), name, 1, None)
    return None


@hidden
def _report(error):
    """Do what CPython does about an exception that nobody has caught; return the exit status, or minus a signal."""
    if isinstance(error, SystemExit):
        return _exit_status(error)
    kind, trace = type(error), error.__traceback__
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    try:
        hook = sys.excepthook
    except AttributeError:
        _write_error("sys.excepthook is missing\n")
        sys.__excepthook__(kind, error, trace)
    else:
        try:
            hook(kind, error, trace)
        except SystemExit as exit_:
            return _exit_status(exit_)
        except BaseException as failure:
            _write_error("Error in sys.excepthook:\n")
            sys.__excepthook__(type(failure), failure, failure.__traceback__)
            _write_error("\nOriginal exception was:\n")
            sys.__excepthook__(kind, error, trace)
    return -_signal.SIGINT if kind is KeyboardInterrupt else 1


def _exit_status(exit_):
    try:
        code = exit_.code
    except Exception:
        code = exit_
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF
    try:
        _write_error(str(code))
    except BaseException:  # its text cannot be made: CPython goes on without
        pass
    _write_error("\n")
    return 1


def _write_error(text):
    try:
        sys.stderr.write(text)
    except Exception:  # closed, replaced by something else, or None
        os.write(2, text.encode("utf-8", "backslashreplace"))


@hidden
def end(status, *, is_small=False):
    """End the process as `Py_FinalizeEx` and `exit` do. A program `is_small` if it has made nothing that lasts."""
    if (threading := _modules.get("threading")) is not None:
        threading._shutdown()
    if "atexit" in _modules:
        _modules["atexit"]._run_exitfuncs()
    # Threads that go on are stopped, and streams that do not take their last text are told, by CPython alone.
    if _thread._count() or not _flush():
        _finish(status)
    _take_down(is_small)
    if not _flush():
        status = status if status < 0 else _FLUSH_FAILED
    if status < 0:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    if len(_modules) > len(_own):  # a library, be it by ctypes, may have something to do in C
        _libc.exit(status)
    os._exit(status)


@hidden
def _finish(status):
    ctypes.pythonapi.Py_Exit(128 - status if status < 0 else status)


@hidden
def _flush():
    """Flush the standard streams that a program may have replaced; return whether that worked."""
    done = True
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except BaseException:
            done = False
    return done


@hidden
def _take_down(is_small):
    """Let go of all that the program has made, in the order in which CPython does: finalizers run, files are closed."""
    global _main  # noqa: PLW0603 - each child has one
    if not is_small:
        gc.collect()
    sys.is_finalizing = _TRUE
    names = vars(sys)
    for name in _OF_SYS_TO_CLEAR:
        if name in names:
            _kept.append(names[name])
            names[name] = None
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    left = []
    for name in ["__main__"] if len(_modules) == len(_own) else [*(_modules.keys() - _own), "__main__"]:
        try:
            left.append(weakref.ref(_modules[name]))
        except TypeError:  # it may be anything
            pass
        _modules[name] = None
    _kept.append(_modules["io"])
    _modules["io"] = None  # so no line of a source is shown any more
    _main = None
    if not is_small:
        gc.collect()
    for reference in reversed(left):
        if (module := reference()) is not None:
            _clear(module)
            module = None
    if len(names) > _of_sys:
        for name in names.keys() - _names_of_sys:
            names[name] = None


@hidden
def _clear(module):
    names = getattr(module, "__dict__", None)
    if not isinstance(names, dict):
        return
    for is_first in (True, False):
        for name in list(names):
            is_private = isinstance(name, str) and name[:1] == "_" and name[1:2] != "_"
            if name != "__builtins__" and is_private is is_first:
                names[name] = None
