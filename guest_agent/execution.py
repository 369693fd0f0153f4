"""One execution: its process, its pipes or its terminal, its control group, its script and its end."""

import os
import time

import accounts
import boot
import cgroup
import ending
import evidence
import route
import script
import spawn
import wire
from nursery import Nursery, make_body
from pipe import Inlet, Outlet
from streams import CONTROL, STDIO, Streams
from wire import Kind

# A child of the zygote may hold copies of its pages: one that was made ahead serves nobody who may hold less.
_OWN_BYTES = 32 * 1024 * 1024


def prepare(agent):
    """Load what every program finds loaded; return what makes children."""
    evidence.prepare()
    account, _ = accounts.find(accounts.DEFAULT)
    boot.remember_user(account.pw_uid)
    boot.calm_kernel()
    nursery = Nursery(agent, accounts.environment(account))
    nursery.start()
    return nursery


def restock():
    """Have a control group ready for the next program."""
    cgroup.restock()


class Execution:
    """Owned by the agent from START until EXITED is sent; afterwards its pipes only drain.

    One is made ahead of its request: it has no id then, and its child waits.
    """

    def __init__(self, agent):
        self.agent = agent
        self.id = None
        self.pid = None
        self.group = None
        self._inlets = {}
        self._outlets = {}
        self._streams = None
        self._body = None
        self._script = None
        self._code = b""
        self._account = self._acting = None
        self._is_over = False
        self._request = {}
        self._orders = []  # kills that came before there was a process
        self._answer_waits = False
        self._status = None
        self._cpu_us = None
        self._stamps = None

    # How it comes to be.

    def make_ahead(self, *, for_clones):
        """Have a child made that waits for a request. Raises `OSError` when the guest has no room for it."""
        streams = Streams()
        try:
            streams.add_pipes(STDIO + CONTROL)
            account, groups = accounts.find(accounts.DEFAULT)
            streams.give_to(account)
            self._account, self._acting = account, accounts.Acting(account, groups)
        except LookupError:  # the request that needs that account is told
            pass
        except OSError:
            streams.close()
            raise
        self._have_made(make_body(self.agent, streams), for_clones=for_clones)
        self._take_ends(STDIO)

    def wait_ready(self):
        self.agent.nursery.wait_born(self._body)
        self._body.wait_ready()

    def dismiss(self):
        """Let the child that was made ahead end, and wait until it has: there will be no request."""
        self._body.close()
        self.agent.nursery.wait(lambda: self._is_over)

    def take(self, ident, request, *, is_alone):
        """Have the child that was made ahead serve a request; return False if it cannot."""
        limits = request.get("limits") or {}
        if not route.is_for_zygote(request) or request.get("pty"):
            return False
        if (limits.get("memory_bytes") or _OWN_BYTES) < _OWN_BYTES:
            return False
        self.agent.spare = None
        if self.pid is not None and not is_alone and not self._body.is_alive():
            self._give_up()
            return False
        self._register(ident, request)
        try:
            if request.get("user") or self._account is None or not is_alone:  # else what was found ahead still holds
                self._account, self._acting = _find(request)
            if request.get("user"):
                self._streams.give_to(self._account)
            self.group.limit(limits)
            if request.get("control"):
                self._take_ends(CONTROL)
            if self.pid is not None:
                self._give(is_alone)
                self._begin()
        except (LookupError, OSError) as error:
            self._refuse_for(error)
            return True
        for outlet in self._outlets.values():
            outlet.watch(True)
        return True

    def start(self, ident, request):
        """Start a process for a request."""
        self._register(ident, request)
        try:
            self._account, self._acting = _find(request)
            if route.is_for_zygote(request):
                body = make_body(self.agent, self._make_streams())
                body.limit(request.get("limits") or {})
                self._have_made(body)
                self._take_ends(STDIO + CONTROL)
            else:
                self._spawn()
        except (LookupError, OSError) as error:
            self._refuse_for(error)

    def _register(self, ident, request):
        self.id = ident
        self._request = request
        self.agent.executions[ident] = self
        if request.get("trace"):
            self._stamps = {"received": time.monotonic()}

    def _make_streams(self):
        streams = Streams()
        try:
            if self._request.get("pty"):
                streams.add_terminal(*self._request["pty"])
            else:
                streams.add_pipes(STDIO)
            if self._request.get("control"):
                streams.add_pipes(CONTROL)
            streams.give_to(self._account)
        except OSError:
            streams.close()
            raise
        return streams

    def _have_made(self, body, *, for_clones=False):
        """Have the zygote make a child, which gets its request when it is there and there is one."""
        body.on_born, body.on_failed, body.on_died = self._on_born, self._on_failed, self.exited
        self.agent.nursery.have_made(body, for_clones=for_clones)
        self._body, self.group, self._streams = body, body.group, body.streams

    def _on_born(self):
        self.pid = self._body.pid
        if self._is_over:
            self._body.close()
        elif self.id is not None:
            try:
                self._give(is_alone=False)
            except OSError as error:
                self._refuse_for(error)
            else:
                self._begin()

    def _on_failed(self, number):
        if self.id is None:
            self._lose_spare()
        elif not self._is_over:
            self._refuse_for(OSError(number, os.strerror(number)))

    def _give(self, is_alone):
        """Hand the request to the child, which places its script itself, if it has one."""
        fields = dict(self._request)
        if "code" in fields:
            fields["data"] = self._code = fields.pop("code").encode("utf-8", "surrogateescape")
            fields["name"] = os.path.basename(fields["name"]) or "script"
        if (command := route.command(self._request, None)) is not None:
            fields["op"], fields["argv"] = "argv", command
        self._body.give(fields, is_alone)
        if self._stamps is not None:
            self._stamps["handed"] = time.monotonic()

    def _place(self):
        self._code = self._request["code"].encode("utf-8", "surrogateescape")
        directory = os.path.join(accounts.WORKSPACE, self._request.get("cwd") or "").rstrip("/")
        with self._acting:
            return script.place(directory, os.path.basename(self._request["name"]) or "script", self._code)

    def _spawn(self):
        """Start a command ourselves."""
        request = self._request
        if "code" in request:
            self._script = self._place()
        command = route.command(request, self._script and self._script.path)
        streams = self._make_streams()
        self.group = cgroup.Group()
        try:
            self.group.create()
            self.group.limit(request.get("limits") or {})
            self.pid = spawn.spawn(command, request, streams, self.group, self._account, self._acting)
        except OSError:
            streams.close()
            raise
        streams.close_theirs()
        self._streams = streams
        self.agent.children[self.pid] = self
        if self._stamps is not None:
            self._stamps["handed"] = time.monotonic()
        self._take_ends(STDIO + CONTROL)
        self._begin()

    def _begin(self):
        self.agent.send(Kind.STARTED, self.id, wire.pid(self.pid))
        orders, self._orders = self._orders, []
        for order in orders:
            self.kill(order)
        self._request = {"kill_children": self._request.get("kill_children")}

    def _take_ends(self, kinds):
        """Attend to our ends of the program's streams of these kinds, as far as there are such."""
        is_terminal = self._streams.terminal is not None
        for kind in kinds:
            fd = self._streams.ours.pop(kind, None)
            if fd is None:
                continue
            if kind in (Kind.STDIN, Kind.ASK):
                self._inlets[kind] = Inlet(self, kind, fd, is_terminal)
            elif kind is Kind.ANSWER:
                self._outlets[kind] = AnswerOutlet(self, kind, fd)
            else:
                self._outlets[kind] = Outlet(self, kind, fd, is_terminal)

    # What the host says to it.

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
            if self._streams is not None and self._streams.terminal is not None:
                self._streams.resize(*wire.decode_size(frame.payload))
        elif kind is Kind.KILL:
            self.kill(wire.decode_json(frame.payload))

    def kill(self, request):
        """Send a signal to the program's process group, or to every process in the control group.

        A number that is no signal is ignored.
        """
        if self.pid is None:
            self._orders.append(request)
            return
        number = int(request.get("signal", 9))
        if request.get("tree"):
            try:
                self.group.signal(number)
                return
            except (OSError, OverflowError):  # root in the guest has removed or hidden it: left is the child's own
                pass
        for send in (os.killpg, os.kill):  # the child may not lead a process group yet
            if self._status is None and self.id in self.agent.executions:
                try:
                    send(self.pid, number)
                    return
                except (OSError, OverflowError):
                    pass

    # Its end.

    def exited(self, status, cpu_us):
        """The process is dead: what it wrote before is still in the pipes and goes out first."""
        if self.id is None:  # it had nothing to do yet
            self._lose_spare()
            return
        if self._is_over:  # it was refused, or dismissed
            return
        self._status, self._cpu_us = status, cpu_us
        if self._stamps is not None:
            self._stamps["dead"] = time.monotonic()
        self._forward(list(self._outlets.values()))

    def _lose_spare(self):
        if self.agent.spare is self:
            self.agent.spare = None
        self._give_up()

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
        if self._request.get("kill_children"):
            try:
                self.group.signal(9)
            except OSError:  # root in the guest has removed or hidden it
                pass
        if self._body is not None:
            stamps, self._script = self._body.told(is_traced=self._stamps is not None)
            if self._stamps is not None:
                self._stamps.update(stamps)
        self._end(ending.of_program(status, self._cpu_us, self.group, self._stamps))

    def _refuse_for(self, error):
        """No program came to be: tell why. A lack of room is told as such, because another try may find some."""
        if isinstance(error, OSError) and not spawn.lacks_room(error):
            said = f"{error.filename or ''}: {error.strerror}".lstrip(": ")
            self._refuse(said, 127 if isinstance(error, FileNotFoundError) else 126)
        elif isinstance(error, OSError):
            said = f"cannot start a process in the guest: {error.strerror}"
            self._refuse(said, 126, lacks_room=True)
        else:
            self._refuse(str(error.args[0]), 126)

    def refuse(self, ident, why):
        """The request cannot be read: say so."""
        self._register(ident, {})
        self._refuse(why, 126)

    def _refuse(self, why, code, *, lacks_room=False):
        self.agent.send(Kind.ERR, self.id, f"sandbox: {why}\n".encode(errors="surrogateescape"))
        self._end(ending.of_refusal(code, why if lacks_room else None))

    def _end(self, end):
        del self.agent.executions[self.id]
        self.agent.send(Kind.EXITED, self.id, end.encode())
        self.agent.channel.flush()
        self._give_up()  # nobody waits for this and the rest
        self.agent.tidy()
        try:
            self.agent.make_spare()
            cgroup.restock()
        except OSError:  # no room, or root in the guest has hidden the control groups: the next execution is told
            pass

    def _give_up(self):
        self._is_over = True
        for inlet in self._inlets.values():
            inlet.close()
        for outlet in self._outlets.values():
            outlet.release()
        if self._body is not None:
            self._body.close()
        elif self._streams is not None:
            self._streams.close()
        if not self.is_gone() and self.id is not None:
            self.agent.left[self.id] = self

    def is_gone(self):
        """Return whether nothing of it lives any more; remove then what was kept for it."""
        if self.group is not None and not self.group.remove():
            return False
        if self._script is not None:
            self._script.remove(self._acting, self._code)
        return True


def _find(request):
    account, groups = accounts.find(request.get("user") or accounts.DEFAULT)
    return account, accounts.Acting(account, groups)


class AnswerOutlet(Outlet):
    """A server's answers: what the server printed before an answer is forwarded before it."""

    def move(self):
        self._execution.hold_answer()

    def move_now(self):
        self.watch(True)
        super().move()
