"""What a child of the zygote does to become the program that was asked for."""

import _signal  # what `signal` wraps in enumerations, at twenty times the cost
import contextlib
import fcntl
import marshal
import os
import resource
import termios
import time

import accounts
import files
import interpreter
import limits
import memory
import orders
import program
import script
import watch
from hidden import hidden

_CONTROL = 3  # and 4: the control streams of a server
_FREE = 5  # the first descriptor behind them
_SERVERS = {"interpreter": interpreter.serve, "files": files.serve, "watch": watch.serve}


def prepare():
    """Do once, in the zygote, what is the same for all children."""
    # The control group counts processes, and tells what it refused: the kernel's own limit must not come before.
    resource.setrlimit(resource.RLIMIT_NPROC, (limits.PIDS_MAX, limits.PIDS_MAX))
    os.environ.pop("LD_BIND_NOW", None)
    with contextlib.suppress(LookupError, OSError):  # each request that needs the account is told
        accounts.find(accounts.DEFAULT)
    program.prepare()


class Request:
    """A request, and what its process was when it came."""

    def __init__(self, fields, ready, account, groups, is_current):
        self.fields = fields
        self.account = account
        self.groups = groups
        self.is_current = is_current
        self.script = None
        self._ready = ready
        self._stamps = [time.monotonic()] if fields.get("trace") else None

    def stamp(self):
        if self._stamps is not None:
            self._stamps.append(time.monotonic())

    def begin(self):
        """The program begins now: tell what is traced, and where its script is; leave it no descriptor of ours."""
        self.stamp()
        said = b"" if self._stamps is None else orders.STAMPS.pack(*self._stamps)
        if self.script is not None:
            path, aside = (text.encode("utf-8", "surrogateescape") for text in (self.script.path, self.script.aside))
            said += orders.PLACED.pack(self.script.is_made, len(path)) + path + aside
        if said:
            os.write(self._ready, said)
        os.close(self._ready)


def wait_for_request(order, descriptors):
    """Leave the zygote behind, do all that needs no request, then block until one comes; end when there is none."""
    *theirs, asked, ready, group = descriptors
    os.write(group, b"0")
    os.setsid()
    taken = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (*theirs, asked, ready)]
    for target, fd in enumerate(taken[:-2]):
        os.dup2(fd, target)
    count = len(theirs)
    asked, ready = os.dup2(taken[-2], _FREE, inheritable=False), os.dup2(taken[-1], _FREE + 1, inheritable=False)
    os.closerange(count, _FREE)
    os.closerange(_FREE + 2, limits.OPEN_FILES)
    if order[:1] == orders.FORK_ON_TERMINAL:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    account, groups = None, []
    try:
        account, groups = accounts.find(accounts.DEFAULT)
        os.chdir(accounts.WORKSPACE)
        os.setgroups(groups)
        os.setgid(account.pw_gid)
        program.find_user_packages(account)
    except (LookupError, OSError):  # root has removed something: the request that needs it is told
        account = None
    program.make_main()
    try:
        if orders.FOR_CLONES in order:
            memory.own()
        os.write(ready, orders.SPENT.pack(time.process_time()))
    except BrokenPipeError:  # the request was faster
        pass
    payload = os.read(asked, orders.REQUEST_BYTES)
    if not payload:
        os._exit(0)
    if len(payload) < orders.LENGTH.size + 1 or len(payload) < orders.LENGTH.unpack_from(payload)[0]:
        while piece := os.read(asked, orders.REQUEST_BYTES):
            payload += piece
    os.close(asked)
    payload = payload[orders.LENGTH.size :]
    is_current = account is not None and payload.startswith(orders.AS_PREPARED)
    request = Request(marshal.loads(payload[1:]), ready, account, groups, is_current)
    if not request.fields.get("control"):
        os.closerange(_CONTROL, _FREE)
    return request


@hidden
def be(request):
    """Become the program. Never returns."""
    status = 126
    try:
        serve = _dress(request)
        if serve is None:
            program.run(request.script.path, request.fields, request.begin)
        status = serve()
    except OSError as error:
        complain(f"{error.filename or ''}: {error.strerror}".lstrip(": "))
        status = 127 if isinstance(error, FileNotFoundError) else 126
    except LookupError as error:
        complain(str(error.args[0]))
    finally:
        os._exit(status)


def complain(message):
    os.write(2, f"sandbox: {message}\n".encode(errors="surrogateescape"))


def _dress(request):
    """Take the user, limits, environment and directory; return what is to be called, None for a script in Python."""
    fields = request.fields
    name = fields.get("user") or accounts.DEFAULT
    is_prepared = request.is_current and name == accounts.DEFAULT
    account, groups = (request.account, request.groups) if is_prepared else accounts.find(name)
    has_terminal = bool(fields.get("pty"))
    if name != accounts.DEFAULT or has_terminal or not is_prepared:
        os.environ.clear()
        os.environ.update(accounts.environment(account, has_terminal=has_terminal))
    if fields.get("env"):
        os.environ.update(fields["env"])
        if "TZ" in fields["env"]:
            time.tzset()
    directory = os.path.join(accounts.WORKSPACE, fields["cwd"]) if fields.get("cwd") else accounts.WORKSPACE
    if not is_prepared:
        os.setgroups(groups)
        os.setgid(account.pw_gid)
    if fields["op"] == "python":
        program.show_command(["python3", "-u", f"{directory}/{fields['name']}", *fields["argv"]])
    os.setuid(account.pw_uid)
    if fields.get("cwd") or not is_prepared:
        os.chdir(directory)
    if "data" in fields:
        request.script = script.place(directory, fields["name"], fields["data"])
    if fields.get("limits"):  # only now: the script is a file, too
        limits.narrow(fields["limits"])
    request.stamp()
    return _call(request, account)


def _call(request, account):
    operation = request.fields["op"]
    _take_signals(waits=operation == "interpreter")
    if operation == "python":
        if account is not request.account or not request.is_current:  # else it was done ahead, and still holds
            program.find_user_packages(account)
        return None
    request.begin()
    if operation == "argv":
        argv = request.fields["argv"]
        if request.script is not None:
            argv = [word if word is not None else request.script.path for word in argv]
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            raise OSError(error.errno, error.strerror, argv[0]) from None
    return _SERVERS[operation]


def _take_signals(*, waits):
    """Let an interrupt through that has come meanwhile; one before an interpreter's first cell must not end it."""
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN if waits else _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGINT, _signal.SIGCHLD})
