"""One execution: a child process, its pipes or its terminal, its control group and its end."""

import fcntl
import os
import struct
import termios
import time

import cgroup
import evidence
import wire
from child import Become
from pipe import Inlet, Outlet
from wire import Kind


class Execution:
    """Owned by the agent from START until EXITED is sent; afterwards its pipes only drain."""

    def __init__(self, agent, ident):
        self.agent = agent
        self.id = ident
        self.pid = None
        self._started = time.monotonic()
        self._inlets = {}
        self._outlets = {}
        self._terminal = None
        self._answer_waits = False
        self._status = None
        self._usage = None
        self._group = cgroup.Group()

    def start(self, request):
        """Fork. The child leaves by raising `Become`, so that none of the agent's frames outlive it."""
        theirs = []
        try:
            if request.get("pty"):
                self._open_terminal(theirs, *request["pty"])
            else:
                self._inlets[Kind.STDIN] = Inlet(self, Kind.STDIN, _pipe_in(theirs))
                self._outlets[Kind.OUT] = Outlet(self, Kind.OUT, _pipe_out(theirs))
                self._outlets[Kind.ERR] = Outlet(self, Kind.ERR, _pipe_out(theirs))
            if request.get("control"):
                self._inlets[Kind.ASK] = Inlet(self, Kind.ASK, _pipe_in(theirs))
                self._outlets[Kind.ANSWER] = AnswerOutlet(self, Kind.ANSWER, _pipe_out(theirs))
            self._group.create(request.get("limits") or {})
            self.pid = os.fork()
        except OSError as error:
            self._refuse(theirs, f"sandbox: cannot start a process in the guest: {error.strerror}\n")
            return
        if self.pid == 0:
            raise Become(request, theirs, self._group)
        for fd in set(theirs):
            os.close(fd)
        self.agent.children[self.pid] = self
        self.agent.send(Kind.STARTED, self.id, wire.pid(self.pid))

    def _open_terminal(self, theirs, rows, columns):
        self._terminal, slave = os.openpty()
        theirs += [slave] * 3
        self._resize(rows, columns)
        self._inlets[Kind.STDIN] = Inlet(self, Kind.STDIN, os.dup(self._terminal), is_terminal=True)
        self._outlets[Kind.OUT] = Outlet(self, Kind.OUT, os.dup(self._terminal), is_terminal=True)

    def handle(self, frame):
        kind = frame.kind
        if kind is Kind.STDIN or kind is Kind.ASK:
            if kind in self._inlets:
                self._inlets[kind].put(frame.payload)
        elif kind is Kind.STDIN_EOF:
            self._inlets[Kind.STDIN].end()
        elif kind is Kind.WINDOW_OUT:
            stream, count = wire.decode_window(frame.payload, wire.OUTPUTS)
            if stream in self._outlets:
                self._outlets[stream].grant(count)
        elif kind is Kind.RESIZE:
            if self._terminal is not None:
                self._resize(*wire.decode_size(frame.payload))
        elif kind is Kind.KILL:
            self.kill(wire.decode_json(frame.payload))

    def _resize(self, rows, columns):
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def kill(self, request):
        """Send a signal to the child's process group, or kill every process in the control group."""
        number = int(request.get("signal", 9))
        if request.get("tree"):
            try:
                self._group.kill() if number == 9 else self._group.signal(number)
                return
            except OSError:  # root in the guest has removed or hidden the group: what is left is the child's own
                pass
        if self._status is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                pass

    def exited(self, status, usage):
        """The child is dead: what it wrote before is still in the pipes and goes out first."""
        self._status, self._usage = status, usage
        self._forward(list(self._outlets.values()))

    def hold_answer(self):
        """The server has answered: what it printed before goes out before its answer."""
        self._answer_waits = True
        self._forward([self._outlets[kind] for kind in (Kind.OUT, Kind.ERR) if kind in self._outlets])

    def _forward(self, outlets):
        for outlet in outlets:
            outlet.mark()
        for outlet in outlets:
            if outlet.left:
                outlet.move()
        self.advance()

    def advance(self):
        """Go on with what waited for output to be forwarded: an answer, or the end."""
        if self._answer_waits:
            if any(self._outlets[kind].left for kind in (Kind.OUT, Kind.ERR) if kind in self._outlets):
                return
            self._answer_waits = False
            self._outlets[Kind.ANSWER].move_now()
        if self._status is not None and not any(outlet.left for outlet in self._outlets.values()):
            self._finish()

    def _finish(self):
        """Report the end. Background programs may still hold the pipes: those are emptied into nowhere."""
        status, self._status = self._status, None
        self._give_up_pipes()
        end = {
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "wall_s": time.monotonic() - self._started,
        }
        if self._usage is not None:
            end["cpu_s"] = self._usage.ru_utime + self._usage.ru_stime
        end.update(self._group.report())
        if status:
            end["evidence"] = evidence.collect(self._group, end.get("oom_kills"))
        self._end(end)

    def _refuse(self, theirs, message):
        """No process came to be: say so on the execution's standard error."""
        for fd in set(theirs):
            os.close(fd)
        self._give_up_pipes()
        self.agent.send(Kind.ERR, self.id, message.encode())
        self._end({"code": 126, "signal": None, "wall_s": time.monotonic() - self._started})

    def _end(self, end):
        del self.agent.executions[self.id]
        self.agent.send_json(Kind.EXITED, self.id, end)
        self.agent.channel.flush()
        self._group.remove()  # nobody waits for this any more
        try:
            cgroup.restock()
        except OSError:  # root in the guest has hidden the control groups: the next execution is told
            pass

    def _give_up_pipes(self):
        for inlet in self._inlets.values():
            inlet.close()
        for outlet in self._outlets.values():
            outlet.release()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None


class AnswerOutlet(Outlet):
    """A server's answers: what the server printed before an answer is forwarded before it."""

    def move(self):
        self.watch(False)
        self._execution.hold_answer()

    def move_now(self):
        self.watch(True)
        super().move()


def _pipe_in(theirs):
    """Make a pipe into the program; return our end of it."""
    read, write = os.pipe2(os.O_CLOEXEC)
    theirs.append(read)
    return write


def _pipe_out(theirs):
    read, write = os.pipe2(os.O_CLOEXEC)
    theirs.append(write)
    return read
