"""The pipes, or the terminal, between the agent and one program: both ends, until each has its owner."""

import fcntl
import os
import struct
import termios

from wire import Kind

STDIO = (Kind.STDIN, Kind.OUT, Kind.ERR)
CONTROL = (Kind.ASK, Kind.ANSWER)
_INPUTS = (Kind.STDIN, Kind.ASK)
_TTY_GROUP = 5


class Streams:
    """`ours` has the agent's end by kind; `theirs` the program's ends, in the order of its descriptors."""

    def __init__(self):
        self.ours = {}
        self.theirs = []
        self.terminal = None

    def add_pipes(self, kinds):
        """Make a pipe for each kind. Raises `OSError` when the guest has no room for it."""
        for kind in kinds:
            read, write = os.pipe2(os.O_CLOEXEC)
            is_input = kind in _INPUTS
            self.ours[kind] = write if is_input else read
            os.set_blocking(self.ours[kind], False)
            self.theirs.append(read if is_input else write)

    def add_terminal(self, rows, columns):
        """Make a terminal instead of the standard streams."""
        self.terminal, slave = os.openpty()
        self.theirs += [slave] * 3
        self.resize(rows, columns)
        os.set_blocking(self.terminal, False)
        self.ours[Kind.STDIN], self.ours[Kind.OUT] = os.dup(self.terminal), os.dup(self.terminal)

    def give_to(self, account):
        """Let a user open the standard streams by name, as /dev/stdout and the others."""
        if self.terminal is not None:
            os.fchown(self.theirs[0], account.pw_uid, _TTY_GROUP)
            os.fchmod(self.theirs[0], 0o620)
        elif account.pw_uid:
            for fd in self.theirs[:3]:
                os.fchown(fd, account.pw_uid, account.pw_gid)

    def resize(self, rows, columns):
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close_theirs(self):
        """The program has its ends, or there is none."""
        for fd in set(self.theirs):
            os.close(fd)
        self.theirs.clear()

    def close(self):
        """Close what has no owner yet."""
        self.close_theirs()
        for fd in (*self.ours.values(), self.terminal):
            if fd is not None:
                os.close(fd)
        self.ours.clear()
        self.terminal = None
