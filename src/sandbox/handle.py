"""What stands for something that runs: it can be passed on, and not be copied."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


class Handle:
    """Base of handles: a copy would be a second owner of one thing, and another process has nothing to hold."""

    __slots__ = ()

    def __reduce_ex__(self, _protocol: SupportsIndex, /) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"{name} stands for something that runs here, so it is not copied or pickled; pass it as it is")
