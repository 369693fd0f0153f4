"""The tests' search of another process's memory, without a VM."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

from tests.proofs.memory_search import search_memory

_HOLDER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
if sys.argv[2:]:
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1
    for byte, at in zip(bytes.fromhex(sys.argv[2]), range((1 << 20) - 16, 1 << 20)):
        memory[at] = byte
    for byte, at in zip(bytes.fromhex(sys.argv[3]), range(1 << 20, (1 << 20) + 16)):
        memory[at] = byte
print("held", flush=True)
sys.stdin.read()
"""


def test_secret_across_two_pieces_is_found(tmp_path: Path) -> None:
    """It is found where two pieces that are read meet; a process that does not hold it is searched in vain."""
    file, secret = tmp_path / "mapped", secrets.token_bytes(32)
    file.write_bytes(bytes(3 << 20))
    for halves in ([secret[:16].hex(), secret[16:].hex()], []):
        command = [sys.executable, "-c", _HOLDER, str(file), *halves]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            search = search_memory(process.pid, [secret, secret.hex().encode()])
            process.kill()
        assert search.found == ([str(file)] if halves else [])
        assert search.searched_bytes > (3 << 20 if halves else 1 << 20)
