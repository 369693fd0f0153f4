"""What a forked child does to stop being the agent and become the program that was asked for."""

import json
import os
import signal
import sys

import accounts
import script

WORKSPACE = "/workspace"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Become(BaseException):
    """Unwinds the forked child's copy of the agent's stack; `run` then turns the process into the program."""

    def __init__(self, request, stdio, group):
        super().__init__()
        self._request = request
        self._stdio = stdio
        self._group = group

    def run(self):
        """Never returns."""
        status = 126
        try:
            self._leave_agent()
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
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        self._group.enter()
        os.setsid()
        for target, fd in enumerate(self._stdio):
            os.dup2(fd, target)
        os.closerange(3, 4096)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
        os.umask(0o022)

    def _drop_and_run(self):
        request = self._request
        name = request.get("user") or "user"
        user, groups = accounts.find(name)
        environment = {
            "PATH": PATH,
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "SHELL": user.pw_shell,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PYTHONUNBUFFERED": "1",
            **(request.get("env") or {}),
        }
        operation = request["op"]
        path = script.place(request["name"], request["code"]) if operation == "python" else None
        os.setgroups(groups)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        os.chdir(request.get("cwd") or WORKSPACE)
        os.environ.clear()
        os.environ.update(environment)
        if operation == "python":
            return script.run(path, request.get("argv") or [])
        if operation == "argv":
            argv = request["argv"]
            try:
                os.execvpe(argv[0], argv, environment)
            except OSError as error:
                raise OSError(error.errno, error.strerror, argv[0]) from None
        return _transfer(operation, request["path"], request.get("mode"))


def _transfer(operation, path, mode):
    """Copy standard input to a file or a file to standard output; a refusal is one JSON line on standard error."""
    try:
        if operation == "write":
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644 if mode is None else mode)
            source, target = 0, fd
        else:
            source, target = os.open(path, os.O_RDONLY), 1
        while data := os.read(source, 128 * 1024):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
        if operation == "write" and mode is not None:
            os.fchmod(target, mode)
    except OSError as error:
        sys.stderr.flush()
        os.write(2, json.dumps({"errno": error.errno, "strerror": error.strerror}).encode())
        return 1
    return 0
