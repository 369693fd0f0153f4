"""What the agent waits for: descriptors, each with whom to call."""

import select

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Poller:
    """What `selectors` does, without what a clone would have to run for it before it answers."""

    def __init__(self):
        self._epoll = select.epoll()
        self._calls = {}

    def add(self, fd, events, call):
        """Have `call(events)` called whenever one of these events is there, or the other end is gone."""
        self._calls[fd] = call
        self._epoll.register(fd, events)

    def change(self, fd, events):
        self._epoll.modify(fd, events)

    def drop(self, fd):
        """Stop to look at it; before it is closed."""
        del self._calls[fd]
        self._epoll.unregister(fd)

    def serve(self, timeout):
        """Wait until something is there, at most `timeout` seconds (-1: without end), and call who is concerned.

        Return whether there was something.
        """
        there = self._epoll.poll(timeout)
        for fd, events in there:
            call = self._calls.get(fd)
            if call is not None:  # else somebody called before has dropped it
                call(events)
        return bool(there)
