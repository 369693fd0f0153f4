"""`python -m sandbox` is the command line."""

from sandbox.cli.main import main

main()
