"""One execution: a child process, its pipes or its terminal, its control group and its end."""

import os
import time

import accounts
import boot
import cgroup
import evidence
import script
import wire
from body import Body
from pipe import Inlet, Outlet
from wire import Kind

_STDIO = (Kind.STDIN, Kind.OUT, Kind.ERR)
_CONTROL = (Kind.ASK, Kind.ANSWER)


def prepare():
    """Load what every child finds loaded."""
    evidence.prepare()
    boot.remember_user(accounts.find("user")[0].pw_uid)
    boot.calm_kernel()


class Execution:
    """Owned by the agent from START until EXITED is sent; afterwards its pipes only drain.

    One is made ahead of its request: it has no id then, and its child waits.
    """

    def __init__(self, agent):
        self.agent = agent
        self.id = None
        self.pid = None
        self._inlets = {}
        self._outlets = {}
        self._body = None
        self._answer_waits = False
        self._status = None
        self._usage = None
        self._stamps = None

    def make_ahead(self):
        """Fork a child that waits for a request. Raises `OSError` when the guest has no room for it."""
        self._body = Body()
        self._adopt()
        self._take_ends(_STDIO)

    def wait_ready(self):
        self._body.wait_ready()

    def dismiss(self):
        """Let the child that was made ahead end: there will be no request."""
        self._body.close()

    def take(self, ident, payload, request, is_alone):
        """Hand a request to the child that was made ahead; return False if it cannot serve it."""
        received = time.monotonic() if request.get("trace") else None
        was_taken = self._body.take(payload, request, is_alone)
        if was_taken or self._body.pid is None:  # else it may serve another one
            self.agent.spare = None
        if not was_taken:
            return False
        self._begin(ident, received)
        if request.get("control"):
            self._take_ends(_CONTROL)
        for outlet in self._outlets.values():
            outlet.watch(True)
        return True

    def start(self, ident, request):
        """Fork for a request. A child leaves the agent's frames by raising `Become`."""
        received = time.monotonic() if request.get("trace") else None
        try:
            self._body = Body(request)
        except OSError as error:
            self.refuse(ident, f"cannot start a process in the guest: {error.strerror}", is_full=True)
            return
        self._adopt()
        self._take_ends(_STDIO + _CONTROL)
        self._begin(ident, received)

    def _begin(self, ident, received):
        self.id = ident
        if received is not None:
            self._stamps = {"received": received, "handed": time.monotonic()}
        self.agent.executions[ident] = self
        self.agent.send(Kind.STARTED, ident, wire.pid(self.pid))

    def _adopt(self):
        self.pid = self._body.pid
        self.agent.children[self.pid] = self

    def _take_ends(self, kinds):
        """Attend to our ends of the child's pipes of these kinds, as far as there are such."""
        is_terminal = self._body.terminal is not None
        for kind in kinds:
            fd = self._body.ends.pop(kind, None)
            if fd is None:
                continue
            if kind in (Kind.STDIN, Kind.ASK):
                self._inlets[kind] = Inlet(self, kind, fd, is_terminal)
            elif kind is Kind.ANSWER:
                self._outlets[kind] = AnswerOutlet(self, kind, fd)
            else:
                self._outlets[kind] = Outlet(self, kind, fd, is_terminal)

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
        """Send a signal to the child's process group, or to every process in the control group.

        A number that is no signal reaches nobody.
        """
        number = int(request.get("signal", 9))
        if request.get("tree"):
            try:
                self._body.group.signal(number)
                return
            except (OSError, OverflowError):  # root in the guest has removed or hidden it: left is the child's own
                pass
        for send in (os.killpg, os.kill):  # the child may not lead a process group yet
            if self._status is None:
                try:
                    send(self.pid, number)
                    return
                except (OSError, OverflowError):
                    pass

    def exited(self, status, usage):
        """The child is dead: what it wrote before is still in the pipes and goes out first."""
        if self.id is None:  # it had nothing to do yet
            self._give_up()
            if self.agent.spare is self:
                self.agent.spare = None
            return
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
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        end = _begin_of_end(code, os.WTERMSIG(status) if code is None else None)
        if self._usage is not None:
            spent = self._usage.ru_utime + self._usage.ru_stime - self._body.spent
            end += f',"cpu_us":{max(0, int(spent * 1e6))}'
        memory = self._body.group.memory()
        if memory is not None:
            end += f',"peak_memory_bytes":{memory}'
        if status:
            kills = self._body.group.oom_kills()
            end += f',"oom_kills":{kills},"evidence":{_json(evidence.collect(self._body.group, kills))}'
        if self._stamps is not None:
            self._stamps["told"] = time.monotonic()
            ahead = time.time() - time.monotonic()
            stamps = {name: int((stamp + ahead) * 1e9) for name, stamp in self._stamps.items()}
            end += f',"stamps":{_json(stamps)}'
        self._end(end)

    def refuse(self, ident, why, is_full=False):
        """No process came to be: say so on the execution's standard error; for want of room, in its end, too."""
        self.id = ident
        self.agent.executions[ident] = self
        self.agent.send(Kind.ERR, ident, f"sandbox: {why}\n".encode())
        refused = f',"refused":{_json(why[:200])}' if is_full else ""
        self._end(_begin_of_end(126, None) + refused)

    def _end(self, end):
        del self.agent.executions[self.id]
        self.agent.send(Kind.EXITED, self.id, (end + "}").encode())
        self.agent.channel.flush()
        self._give_up()  # nobody waits for this and the rest
        try:
            self.agent.make_spare()
            cgroup.restock()
        except OSError:  # no room, or root in the guest has hidden the control groups: the next execution is told
            pass

    def _give_up(self):
        for inlet in self._inlets.values():
            inlet.close()
        for outlet in self._outlets.values():
            outlet.release()
        if self._body is not None:
            self._body.close()
            if self._body.group.remove():
                script.clear(self.pid)


def _begin_of_end(code, signal):
    """Return the first fields of EXITED's object. An emulated guest writes it sooner than an encoder does."""
    return f'{{"code":{_json(code)},"signal":{_json(signal)}'


def _json(value):
    if value is None:
        return "null"
    if isinstance(value, int):
        return str(value)
    import json  # noqa: PLC0415 - a good end needs none

    return json.dumps(value)


class AnswerOutlet(Outlet):
    """A server's answers: what the server printed before an answer is forwarded before it."""

    def move(self):
        self._execution.hold_answer()

    def move_now(self):
        self.watch(True)
        super().move()
