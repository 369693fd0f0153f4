"""What the kernel runs as process 1: the agent, whose modules have byte code, as a main program has not."""

import os

told = str  # nobody asked: whatever is told goes nowhere
if "SANDBOX_TRACE" in os.environ:  # the kernel hands on what it does not know of its command line
    from told import told
told("python")

import agent  # noqa: E402 - a stage of its own

agent.main(told)
