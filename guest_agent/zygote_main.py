"""What `python3 -u` runs as the zygote: its loop begins as an exception hook, when this module's own frame is gone.

So no frame of ours lies below a program that a child of it runs.
"""

import sys

import zygote

sys.excepthook = zygote.live
raise zygote.Begin
