"""One execution: a child process, its pipes or its terminal, its control group and its end."""

import os
import time

import accounts
import cgroup
import evidence
import script
import wire
from body import Body
from pipe import Inlet, Outlet
from wire import Kind


def prepare():
    """Load what every child finds loaded."""
    evidence.prepare()
    accounts.find("user")


class Execution:
    """Owned by the agent from START until EXITED is sent; afterwards its pipes only drain."""

    def __init__(self, agent, ident):
        self.agent = agent
        self.id = ident
        self.pid = None
        self._started = time.monotonic()
        self._inlets = {}
        self._outlets = {}
        self._body = None
        self._answer_waits = False
        self._status = None
        self._usage = None
        self._stamps = None

    def start(self, payload):
        """Fork, or take the child that was made ahead. A child leaves the agent's frames by raising `Become`."""
        request = wire.decode_json(payload)
        if request.get("trace"):
            self._stamps = {"received": self._started}
        try:
            self._body = self.agent.take_spare(payload, request) or Body(request)
        except OSError as error:
            self._refuse(f"sandbox: cannot start a process in the guest: {error.strerror}\n")
            return
        if self._stamps is not None:
            self._stamps["handed"] = time.monotonic()
        self.pid = self._body.pid
        self.agent.children[self.pid] = self
        ends, self._body.ends = self._body.ends, {}
        is_terminal = self._body.terminal is not None
        for kind, fd in ends.items():
            if kind in (Kind.STDIN, Kind.ASK):
                self._inlets[kind] = Inlet(self, kind, fd, is_terminal)
            elif kind is Kind.ANSWER:
                self._outlets[kind] = AnswerOutlet(self, kind, fd)
            else:
                self._outlets[kind] = Outlet(self, kind, fd, is_terminal)
        self.agent.send(Kind.STARTED, self.id, wire.pid(self.pid))

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
            if self._body.terminal is not None:
                self._body.resize(*wire.decode_size(frame.payload))
        elif kind is Kind.KILL:
            self.kill(wire.decode_json(frame.payload))

    def kill(self, request):
        """Send a signal to the child's process group, or to every process in the control group."""
        number = int(request.get("signal", 9))
        if request.get("tree"):
            try:
                self._body.group.signal(number)
                return
            except OSError:  # root in the guest has removed or hidden the group: what is left is the child's own
                pass
        for send in (os.killpg, os.kill):  # the child may not lead a process group yet
            if self._status is None:
                try:
                    send(self.pid, number)
                    return
                except ProcessLookupError:
                    pass

    def exited(self, status, usage):
        """The child is dead: what it wrote before is still in the pipes and goes out first."""
        self._status, self._usage = status, usage
        if self._stamps is not None:
            self._stamps["dead"] = time.monotonic()
        self._forward(list(self._outlets.values()))

    def hold_answer(self):
        """The server has answered: what it printed before goes out before its answer."""
        self._answer_waits = True
        self._forward([self._outlets[kind] for kind in (Kind.OUT, Kind.ERR) if kind in self._outlets])
        if self._answer_waits:
            self._outlets[Kind.ANSWER].watch(False)

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
        if self._stamps is not None:
            self._stamps.update(self._body.stamps())
        end = {
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "wall_s": time.monotonic() - self._started,
        }
        if self._usage is not None:
            end["cpu_s"] = max(0.0, self._usage.ru_utime + self._usage.ru_stime - self._body.spent)
        end.update(self._body.group.report())
        if status:
            end["evidence"] = evidence.collect(self._body.group, end.get("oom_kills"))
        if self._stamps is not None:
            self._stamps["told"] = time.monotonic()
            ahead = time.time() - time.monotonic()
            end["stamps"] = {name: int((stamp + ahead) * 1e9) for name, stamp in self._stamps.items()}
        self._end(end)

    def _refuse(self, message):
        """No process came to be: say so on the execution's standard error."""
        self.agent.send(Kind.ERR, self.id, message.encode())
        self._end({"code": 126, "signal": None, "wall_s": time.monotonic() - self._started})

    def _end(self, end):
        del self.agent.executions[self.id]
        self.agent.send_json(Kind.EXITED, self.id, end)
        self.agent.channel.flush()
        self._give_up_pipes()  # nobody waits for this and the rest
        if self._body is not None and self._body.group.remove():
            script.clear(self.pid)
        try:
            self.agent.make_spare()
            cgroup.restock()
        except OSError:  # no room, or root in the guest has hidden the control groups: the next execution is told
            pass

    def _give_up_pipes(self):
        for inlet in self._inlets.values():
            inlet.close()
        for outlet in self._outlets.values():
            outlet.release()
        if self._body is not None:
            self._body.close()


class AnswerOutlet(Outlet):
    """A server's answers: what the server printed before an answer is forwarded before it."""

    def move(self):
        self._execution.hold_answer()

    def move_now(self):
        self.watch(True)
        super().move()
