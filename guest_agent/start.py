"""What the kernel runs as process 1: the agent, whose modules have byte code, as a main program has not."""

import agent

agent.main()
