"""What the agent and the zygote say to each other: each order is a packet, each piece of news a record in a pipe.

An emulator translates each kernel function once in every clone. The code for pipes is needed for the program's output
anyway, that for sockets is not.
"""

import _socket  # `socket` takes a twentieth of a boot
import struct

FORK, FORK_ON_TERMINAL, PREPARE = b"F", b"T", b"P"
"""Orders. With the first two come the child's ends of its streams, then those of its orders, its answers, its group."""
BORN, NO_ROOM, DEAD, PREPARED = b"B", b"N", b"D", b"R"
"""News: a child's process id; why there is none, as an errno; an end, with status and processor time; done."""
NEWS = struct.Struct("!cIiQ")
FOR_CLONES = b"\1"
"""Behind an order: the child will be in a snapshot. It gets its own copy of its pages, and the agent as its parent."""
REQUEST_BYTES = 64 * 1024
LENGTH = struct.Struct("=Q")
"""Before a child's request: its length, this and the next byte included."""
AS_PREPARED, LOOK_AGAIN = b"\0", b"\1"
"""Before a child's request: whether what it found out ahead of it may have changed."""
SPENT = struct.Struct("d")
"""From a child that is ready: the processor seconds that it has used before its request."""
STAMPED = ("read", "dropped", "begun")
STAMPS = struct.Struct("3d")
"""From a child that is traced: when it had its request, its user, its program."""
PLACED = struct.Struct("?H")
"""From a child whose script is a file: whether it made it, and its path's length; then path and own directory."""
PACKET_BYTES = 16
_MOST_DESCRIPTORS = 8
_INT = struct.Struct("i")


def pair():
    """Return both ends of a new connection."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)


def send(sock, data, descriptors=()):
    """Send one packet. Raises `OSError`."""
    packed = b"".join(map(_INT.pack, descriptors))
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if descriptors else []
    sock.sendmsg([data], rights)


def receive(sock):
    """Return the next packet and the descriptors that came with it; no bytes when the other end is gone."""
    data, ancillary, _, _ = sock.recvmsg(
        PACKET_BYTES, _socket.CMSG_LEN(_MOST_DESCRIPTORS * _INT.size), _socket.MSG_CMSG_CLOEXEC
    )
    descriptors = [fd for _, _, packed in ancillary for (fd,) in _INT.iter_unpack(packed)]
    return data, descriptors
