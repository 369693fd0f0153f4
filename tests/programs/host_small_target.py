"""Runs on the host as root, in a mount namespace of its own: a guest's files come to a file system of 3 MiB."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from sandbox.errors import HostFileError
from sandbox.guest.transfer import download
from sandbox.message import Tag, encode
from tests.fakes.file_guest import FileGuest, data, in_tree, says, stat_of

MIB = 1 << 20
PLACE = Path(sys.argv[1]) / "small"


def guest_of(size, pieces):
    """Return a guest with a file, and a directory with a file, that state a size and have another one."""

    def script(request):
        if request["op"] == "stat":
            return [says(stat=stat_of("directory" if request["path"] == "tree" else "file", size=size))]
        is_tree = request["op"] == "pack"
        begin = says(entry=in_tree("file", "a", size=size)) if is_tree else says(stat=stat_of("file"))
        content = [data(bytes([1]) * 65536)] * pieces
        return [begin, *content, encode(Tag.END), says(error=None), says(done=True)] if is_tree else [
            begin,
            *content,
            encode(Tag.END),
            says(),
        ]

    return FileGuest(script)


async def copy(source, size, pieces):
    """Return the error's number, the files that are left, and how many bytes they take."""
    guest, number = guest_of(size, pieces), None
    try:
        await download(guest.files, source, PLACE / "copy")
    except HostFileError as error:
        number = error.errno
    guest.release()
    files = [path for path in PLACE.rglob("*") if path.is_file()]
    used = sum(path.stat().st_size for path in files)
    names = [path.name for path in files]
    subprocess.run(["rm", "-rf", str(PLACE / "copy")], check=True)
    return number, names, used


async def main():
    PLACE.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(PLACE)], check=True)
    said = {}
    for source in ("file", "tree"):
        said[f"stated {source}"] = await copy(source, 5 * MIB, 80)
        said[f"lie {source}"] = await copy(source, 1, 160)
    said["fits"] = await copy("file", 2 * MIB, 32)
    print(json.dumps(said))


asyncio.run(main())
