"""The guest's init: waits for the host's frames, runs what they ask for, and reports what happened.

It runs as process 1 and root, reaps every orphan, and speaks only when spoken to. It enforces nothing that the host
relies on: whoever takes over this process gains a VM that is destroyed at the end of its lease.
"""

import gc
import os
import selectors
import signal
import time

import boot
import cgroup
import hpet
import wire
from channel import Channel
from identity import Identity
from unwind import Unwind
from wire import Kind

AGENT_VERSION = 2
_REAPED_AT_ONCE = 500  # then the host is heard again, however fast processes die


class Agent:
    """One loop over the channel, the pipes of all executions and the deaths of children."""

    def __init__(self, port):
        self.selector = selectors.DefaultSelector()
        self.identity = Identity()
        self.channel = Channel(port, self.selector)
        self.executions = {}
        self.children = {}  # process id -> execution
        self.paused = []  # outlets that wait for room in the channel
        self.spare = None
        self._spare_is_alone = False  # whether no program has lived since it was made
        self._programs = None
        self.epoch = None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until a child knows what to make of one
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self.selector.register(self._wake_read, selectors.EVENT_READ, self.reap)

    def serve(self):
        """Run until the host closes the channel."""
        while not self.channel.closed:
            if self.epoch is None:
                self.meet()
                continue
            for key, events in self.selector.select():
                if key.fileobj is self.channel:
                    for frame in self.channel.exchange(events):
                        self.handle(frame)
                else:
                    key.data()
            self.channel.flush()
            while self.paused and not self.channel.is_full:
                self.paused.pop().watch(True)

    def meet(self):
        """Wait for HELLO and nothing else, and answer it by the shortest way.

        A clone begins here. Where its processor is emulated every function that it runs has to be translated anew,
        those of the selector, the decoder and the channel's queue, too; afterwards nobody waits for them.
        """
        came = self.channel.read_exactly(wire.HELLO_FRAME.size)
        if came is None:
            return
        length, epoch, _, kind, *told = wire.HELLO_FRAME.unpack(came)
        if kind != Kind.HELLO or length != wire.HELLO.size:
            raise wire.FrameError(f"a frame of kind {kind} reached a machine without identity")
        self.epoch = epoch
        self.channel.write(
            wire.READY_FRAME.pack(
                *(wire.READY.size, epoch, 0, Kind.READY),
                *(self.identity.apply(*told), time.time_ns(), wire.PROTOCOL_VERSION, AGENT_VERSION),
            )
        )
        self.identity.settle()
        self._load()

    def handle(self, frame):
        if frame.kind is Kind.HELLO:
            self.hello(frame)
        elif frame.epoch != self.epoch:
            raise wire.FrameError(f"a frame of epoch {frame.epoch} reached epoch {self.epoch}")
        elif frame.kind is Kind.PING:
            self.send(Kind.PONG, 0)
        elif frame.kind is Kind.QUIESCE:
            self.quiesce()
        elif frame.kind is Kind.START:
            if frame.id not in self.executions:
                execution = self._load().Execution(self, frame.id)
                self.executions[frame.id] = execution
                execution.start(frame.payload)
        elif frame.id in self.executions:  # else: a late word to an execution that has ended
            self.executions[frame.id].handle(frame)

    def hello(self, frame):
        proof = self.identity.apply(*wire.HELLO.unpack(frame.payload))
        self.epoch = frame.epoch
        self.send(Kind.READY, 0, wire.READY.pack(proof, time.time_ns(), wire.PROTOCOL_VERSION, AGENT_VERSION))
        self.channel.flush()
        self.identity.settle()

    def _load(self):
        """Return the module that runs programs. Importing all that takes a third of a boot: the host hears first."""
        if self._programs is None:
            import execution  # noqa: PLC0415 - see above

            execution.prepare()
            self._programs = execution
        return self._programs

    def quiesce(self):
        """Leave nothing in motion: what is in memory now is in every clone."""
        self.make_spare()
        self.spare.wait_ready()
        hpet.stop()
        os.sync()
        gc.collect()
        gc.freeze()
        self.send(Kind.QUIESCED, 0)
        self.channel.flush()
        self.epoch = None

    def make_spare(self):
        """Have a child ready for the next program."""
        if self.spare is None or self.spare.pid is None:
            self.spare = self._load().Body()
            self.children[self.spare.pid] = self.spare
            self._spare_is_alone = not self.executions

    def take_spare(self, payload, request):
        """Return the child that was made ahead, with the request in its hands; None if there is none for it."""
        spare, is_alone = self.spare, self._spare_is_alone and not cgroup.is_left_over()
        self._spare_is_alone = False
        if spare is None or not spare.take(payload, request, is_alone):
            return None
        self.spare = None
        return spare

    def send(self, kind, ident, payload=b""):
        self.channel.send(wire.encode_header(kind, self.epoch, ident, len(payload)), payload)

    def send_json(self, kind, ident, message):
        self.channel.send(wire.encode_json(kind, self.epoch, ident, message))

    def reap(self):
        """Collect every dead child; orphans of user code end up here too."""
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        for _ in range(_REAPED_AT_ONCE):
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (execution := self.children.pop(pid, None)) is not None:
                execution.exited(status, usage)
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:  # so full that it wakes us anyway
            pass


def main(told):
    """Be the guest's init. `told` is called with each stage of the boot that has ended."""
    become = None
    try:
        told("import")
        boot.mount_everything()
        boot.protect_self()
        agent = Agent(boot.open_port())
        told("agent")
        agent.serve()
    except Unwind as request:  # only in a forked child
        become = request
    except Exception:
        import traceback  # noqa: PLC0415 - 15 ms of every boot

        traceback.print_exc()
    if become is not None:
        # Outside of the handler: the agent's frames are gone, and no exception of ours is the context of the user's.
        become.with_traceback(None).run()
    boot.power_off()
