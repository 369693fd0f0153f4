"""What `python3 -u` runs as a context whose environment the warm interpreter would not see."""

import os
import sys

sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import interpreter  # noqa: E402
import program  # noqa: E402

program.hide()
interpreter.serve()
