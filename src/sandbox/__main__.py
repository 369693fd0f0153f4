"""`python -m sandbox` is the command line."""

from sandbox.cli.entry import main

main()
