"""What a forked child does to stop being the agent and become the program that was asked for."""

import _signal  # what `signal` wraps in enumerations, at twenty times the cost
import fcntl
import gc
import math
import os
import random
import resource
import struct
import termios
import time

import accounts
import boot
import cgroup
import files
import interpreter
import memory
import script
import watch
import wire
from unwind import Unwind

STAMPED = ("read", "dropped", "begun")  # what a child that is traced tells the time of
STAMPS = struct.Struct("3d")
AS_PREPARED, LOOK_AGAIN = b"\0", b"\1"  # before a request: whether what was found out ahead of it may have changed
SPENT = struct.Struct("d")  # processor seconds that a child made ahead has used before its request
WORKSPACE = "/workspace"
SERVERS = {"interpreter": interpreter.serve, "files": files.serve, "watch": watch.serve}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Ends:
    """The child's ends of its pipes: the program's, and those by which a child made ahead gets its request."""

    def __init__(self):
        self.stdio = []
        self.orders = self.ready = None

    def close(self):
        for fd in {*self.stdio, self.orders, self.ready} - {None}:
            os.close(fd)


class Become(Unwind):
    """Unwinds the forked child's copy of the agent's stack; `run` then turns the process into the program."""

    def __init__(self, request, ends, group):
        super().__init__()
        self._request = request
        self._ends = ends
        self._group = group
        self._stamps = None
        self._room = None  # where its script goes
        self._dressed = None  # the account whose environment, streams and directory it has already
        self._groups = []
        self._is_current = False  # whether that account is known to be still the same

    def run(self):
        """Never returns."""
        status = 126
        try:
            self._leave_agent()
            if self._request is None:
                self._wait_for_request()
            self._take_signals()
            status = self._drop_and_run()
        except OSError as error:
            self._complain(f"{error.filename or ''}: {error.strerror}".lstrip(": "))
            status = 127 if isinstance(error, FileNotFoundError) else 126
        except LookupError as error:
            self._complain(str(error.args[0]))
        finally:
            os._exit(status)

    def _complain(self, message):
        os.write(2, f"sandbox: {message}\n".encode(errors="surrogateescape"))

    def _leave_agent(self):
        gc.freeze()  # what the agent had is never collected here: it would close descriptors that are ours by then
        stdio = self._ends.stdio
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        self._group.enter()  # from here on its own standard error hears what goes wrong
        descriptor = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=boot.proc)
        os.write(descriptor, b"0")
        os.setsid()
        if self._request is None:
            self._ends.orders = os.dup2(self._ends.orders, len(stdio))
            self._ends.ready = os.dup2(self._ends.ready, len(stdio) + 1)
            os.closerange(len(stdio) + 2, boot.OPEN_FILES)
        else:
            os.closerange(len(stdio), boot.OPEN_FILES)
            if self._request.get("pty"):
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.umask(0o022)

    def _wait_for_request(self):
        """Do all that needs no request, then block until one comes; end when there will be none."""
        script.forget_agent()
        try:
            self._room = script.make_room()
            user, self._groups = accounts.find("user")
            os.chdir(WORKSPACE)
            os.setgroups(self._groups)
            os.setgid(user.pw_gid)
            self._dress(user)
        except (LookupError, OSError):  # root has removed something: whoever asks for it is told
            pass
        try:
            if memory.is_for_clones:
                memory.own()
            os.write(self._ends.ready, SPENT.pack(time.process_time()))
        except BrokenPipeError:  # the request was faster
            pass
        payload = bytearray()
        while piece := os.read(self._ends.orders, 65536):
            payload += piece
        if not payload:
            os._exit(0)
        os.close(self._ends.orders)
        self._is_current = self._dressed is not None and payload.startswith(AS_PREPARED)
        self._request = wire.decode_json(payload[1:])
        if self._request.get("trace"):
            self._stamps = [time.monotonic()]
        else:
            os.close(self._ends.ready)
        if not self._request.get("control"):
            os.closerange(3, 5)
        random.seed()  # as a fork does: this one may lie before a snapshot

    def _take_signals(self):
        """Let an interrupt through that has come meanwhile; one before an interpreter's first cell must not end it."""
        for number in (_signal.SIGCHLD, _signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        waits = self._request["op"] == "interpreter"
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN if waits else _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGINT, _signal.SIGCHLD})

    def _tell_stamps(self):
        """The program begins now: tell what is traced, and leave it no descriptor of ours."""
        if self._stamps is not None:
            self._stamps.append(time.monotonic())
            os.write(self._ends.ready, STAMPS.pack(*self._stamps))
            os.close(self._ends.ready)

    def _limit(self, limits):
        files = limits.get("open_files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files) if files else (1024, boot.OPEN_FILES))
        # The control group counts processes, and tells what it refused: the kernel's own limit must not come before.
        resource.setrlimit(resource.RLIMIT_NPROC, (cgroup.PIDS_MAX, cgroup.PIDS_MAX))
        if limits.get("cpu_seconds"):
            seconds = max(1, math.ceil(limits["cpu_seconds"]))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        if limits.get("file_bytes") is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"],) * 2)

    def _dress(self, user, *, has_terminal=False):
        """Give streams, limits and environment what every program of this user finds."""
        os.environ.clear()
        os.environ.update(
            PATH=PATH,
            HOME=user.pw_dir,
            USER=user.pw_name,
            LOGNAME=user.pw_name,
            SHELL=user.pw_shell,
            LANG="C.UTF-8",
            TERM="xterm-256color" if has_terminal else "dumb",
            PYTHONUNBUFFERED="1",
        )
        if has_terminal:
            os.fchown(0, user.pw_uid, 5)  # group tty
            os.fchmod(0, 0o620)
        else:  # so that it may open /dev/stdout and the others by name
            for fd in range(3):
                os.fchown(fd, user.pw_uid, user.pw_gid)
        self._limit({})
        self._dressed = user

    def _drop_and_run(self):
        request = self._request
        name = request.get("user") or "user"
        is_prepared = self._is_current and name == self._dressed.pw_name
        user, groups = (self._dressed, self._groups) if is_prepared else accounts.find(name)
        if user is not self._dressed:
            self._dress(user, has_terminal=bool(request.get("pty")))
        if request.get("env"):
            os.environ.update(request["env"])
        operation = request["op"]
        path = data = None
        if "code" in request:
            data = request["code"].encode("utf-8", "surrogateescape")
            path = script.place(script.make_room() if self._room is None else self._room, request["name"], data)
        elif self._room is not None:
            os.close(self._room)
        if request.get("limits"):  # only now: the script is a file, too
            self._limit(request["limits"])
        if not is_prepared:
            os.setgroups(groups)
            os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        if request.get("cwd"):
            os.chdir(os.path.join(WORKSPACE, request["cwd"]))
        elif not is_prepared:
            os.chdir(WORKSPACE)
        if self._stamps is not None:
            self._stamps.append(time.monotonic())
        if operation == "python":
            return script.run(path, data, request.get("argv") or [], self._tell_stamps)
        self._tell_stamps()
        if operation in ("argv", "script"):
            argv = request["argv"] if operation == "argv" else [*request["interpreter"], path, *request["argv"]]
            try:
                os.execvp(argv[0], argv)
            except OSError as error:
                raise OSError(error.errno, error.strerror, argv[0]) from None
        return SERVERS[operation]()
