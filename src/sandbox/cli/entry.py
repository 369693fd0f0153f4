"""Where the command line begins: it imports nothing of ours before Ctrl-C is a quiet end."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line. Until all is imported, an interrupt ends this process as it ends any other program."""
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sandbox.cli.main import main as run

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
