"""The guest's init: waits for the host's frames, runs what they ask for, and reports what happened.

It runs as process 1 and root, reaps every orphan, and speaks only when spoken to. It enforces nothing that the host
relies on: whoever takes over this process gains a VM that is destroyed at the end of its lease.
"""

import _signal  # `signal` makes enumerations, at a cost to each boot
import gc
import os
import time

import boot
import hpet
import memory
import orphans
import wire
from channel import Channel
from identity import Identity
from poller import READ, Poller
from wire import Kind

AGENT_VERSION = 4
_SETTLING = 0.3  # for what the kernel has put off, control groups that were removed among it: else each clone does it
_PATIENCE = 0.1  # for what the host may have to say when it has heard from a guest that has just booted
_TRIED_AT_ONCE = 2  # groups that background processes have lived on in
_REAPED_AT_ONCE = 500  # then the host is heard again, however fast processes die


class Agent:
    """One loop over the channel, the pipes of all executions and the deaths of children.

    It starts commands itself, and has the zygote fork what runs in Python: no program is ever a copy of this process.
    """

    def __init__(self, port):
        self.poller = Poller()
        self.identity = Identity()
        self.channel = Channel(port, self.poller, self.handle)
        self.executions = {}
        self.children = {}  # process id -> execution
        self.left = {}  # id -> execution that has ended, and of which background processes may live
        self.nursery = None
        self.paused = []  # outlets that wait for room in the channel
        self.spare = None
        self._spare_is_alone = False  # whether no program has lived since it was made
        self._programs = None
        self._is_prepared = False
        self.epoch = None
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT})  # until a child knows what to make of one
        self._deaths = orphans.open_deaths()
        self._dead_are_left = False
        self.poller.add(self._deaths, READ, self.hear_of_deaths)

    def serve(self):
        """Run until the host closes the channel."""
        while not self.channel.closed:
            if self.epoch is None:
                self.meet()
                continue
            patience = 0 if self._dead_are_left else _PATIENCE if self._programs is None else -1
            if not self.poller.serve(patience) and self._programs is None:
                self._load()
            if self._dead_are_left:
                self.reap()
            self.channel.flush()
            while self.paused and not self.channel.is_full:
                self.paused.pop().resume()

    def meet(self):
        """Wait for HELLO and nothing else, and answer it by the shortest way.

        A clone begins here. Where its processor is emulated every function that it runs has to be translated anew,
        those of the poller, the decoder and the channel's queue, too; afterwards nobody waits for them.
        """
        came = self.channel.read_exactly(wire.HELLO_FRAME.size)
        if came is None:
            return
        length, epoch, _, kind, *told = wire.HELLO_FRAME.unpack(came)
        if kind != Kind.HELLO or length != wire.HELLO.size:
            raise wire.FrameError(f"a frame of kind {kind} reached a machine without identity")
        self.epoch = epoch
        self.channel.write(wire.READY_FRAME.pack(wire.READY.size, epoch, 0, Kind.READY, *self.become(told)))
        self.identity.settle()

    def handle(self, frame):
        if frame.kind is Kind.HELLO:
            self.hello(frame)
        elif frame.epoch != self.epoch:
            raise wire.FrameError(f"a frame of epoch {frame.epoch} reached epoch {self.epoch}")
        elif frame.kind is Kind.PING:
            self.send(Kind.PONG, 0)
        elif frame.kind is Kind.PREPARE:
            self.prepare()
            self.send(Kind.PREPARED, 0)
        elif frame.kind is Kind.QUIESCE:
            self.quiesce()
        elif frame.kind is Kind.START:
            if frame.id not in self.executions:
                self.start(frame.id, frame.payload)
        elif frame.id in self.executions:
            self.executions[frame.id].handle(frame)
        elif frame.kind is Kind.KILL and frame.id in self.left:
            self.left[frame.id].handle(frame)  # any other word to an execution that has ended comes too late

    def hello(self, frame):
        ready = self.become(wire.HELLO.unpack(frame.payload))
        self.epoch = frame.epoch
        self.send(Kind.READY, 0, wire.READY.pack(*ready))
        self.channel.flush()
        self.identity.settle()

    def become(self, told):
        """Take the identity that HELLO brings; return the fields of READY."""
        proof = self.identity.apply(*told)
        return time.time_ns(), wire.PROTOCOL_VERSION, AGENT_VERSION, *proof

    def dismiss_spare(self):
        if (spare := self.spare) is not None:
            spare.dismiss()

    def start(self, ident, payload):
        """Have the spare serve a request, if it can, or a new execution."""
        programs = self._load()
        try:
            request = wire.decode_json(payload)
        except wire.FrameError as error:
            programs.Execution(self).refuse(ident, f"the request cannot be read: {error}")
            return
        is_alone, self._spare_is_alone = self._spare_is_alone and not self.left, False
        if self.spare is None or not self.spare.take(ident, request, is_alone=is_alone):
            programs.Execution(self).start(ident, request)

    def _load(self):
        """Return the module that runs programs. Importing all that takes a third of a boot: the host hears first.

        It may also have to say HELLO once more, because a boot took longer than it thought.
        """
        if self._programs is None:
            import execution  # noqa: PLC0415 - see above

            self.nursery = execution.prepare(self)
            self._programs = execution
        return self._programs

    def prepare(self):
        """Do what every clone then finds done, as long as nobody waits for it."""
        programs = self._load()
        self._is_prepared = True
        self.dismiss_spare()
        self.nursery.prepare()
        self.make_spare()
        programs.restock()
        self.spare.wait_ready()
        self.nursery.prepare()  # once more, so that the zygote no longer shares pages with the spare
        os.sync()
        gc.collect()
        memory.own()
        time.sleep(_SETTLING)

    def quiesce(self):
        """Leave nothing in motion: what is in memory now is in every clone."""
        if not self._is_prepared:
            self.prepare()
        self._is_prepared = False
        hpet.stop()
        gc.freeze()
        self.send(Kind.QUIESCED, 0)
        self.channel.flush()
        self.epoch = None

    def make_spare(self):
        """Have an execution ready for the next request, with a child that waits for it."""
        if self.spare is None:
            spare = self._load().Execution(self)
            spare.make_ahead(for_clones=self._is_prepared)
            self.spare = spare
            self._spare_is_alone = not self.executions

    def tidy(self):
        """Remove what is kept for executions that have ended, as far as nothing of them lives any more."""
        for ident in list(self.left)[:_TRIED_AT_ONCE]:
            execution = self.left.pop(ident)
            if not execution.is_gone():
                self.left[ident] = execution  # behind the others

    def send(self, kind, ident, payload=b""):
        self.channel.send(wire.encode_header(kind, self.epoch, ident, len(payload)), payload)

    def hear_of_deaths(self, _events):
        orphans.forget(self._deaths)
        self.reap()

    def reap(self):
        """Collect every dead child; orphans of user code end up here too."""
        self._dead_are_left = False
        if self.left:
            self.tidy()
        for _ in range(_REAPED_AT_ONCE):
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            spent_us = int((usage.ru_utime + usage.ru_stime) * 1e6)
            if (execution := self.children.pop(pid, None)) is not None:
                execution.exited(status, spent_us)
            elif self.nursery is not None and pid == self.nursery.pid:
                self.nursery.died()
            elif self.nursery is not None:
                self.nursery.child_died(pid, status, spent_us)  # else somebody's orphan
        self._dead_are_left = True


def _make(told):
    boot.mount_everything()
    boot.protect_self()
    boot.harden()
    agent = Agent(boot.open_port())
    told("agent")
    return agent


def main(told):
    """Be the guest's init. `told` is called with each stage of the boot that has ended."""
    try:
        told("import")
        _make(told).serve()
    except Exception:
        import traceback  # noqa: PLC0415 - 15 ms of every boot

        traceback.print_exc()
    boot.power_off()
