"""A program of the kind that an agent writes: reads, parses, computes in parallel, stores, reports."""

import argparse
import collections
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

LINE = re.compile(
    r"(?P<when>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\s+"
    r"(?P<level>DEBUG|INFO|WARN|ERROR)\s+"
    r"\[(?P<service>[a-z-]+)\]\s+"
    r"(?P<text>.*?)(?:\s+took=(?P<took>\d+)ms)?$"
)

SERVICES = ("billing", "catalogue", "search", "web-front")
LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "WARN", "ERROR")


@dataclasses.dataclass(frozen=True)
class Entry:
    when: str
    level: str
    service: str
    text: str
    took: int | None

    @classmethod
    def parse(cls, line: str) -> "Entry | None":
        match = LINE.match(line)
        if match is None:
            return None
        took = match["took"]
        return cls(match["when"], match["level"], match["service"], match["text"], int(took) if took else None)


def make_log(path: pathlib.Path, lines: int) -> None:
    """Write a log whose content depends on nothing but its length."""
    with path.open("w") as file:
        for number in range(lines):
            seconds = number % 86_400
            clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
            service = SERVICES[number * 7 % len(SERVICES)]
            level = LEVELS[number * 11 % len(LEVELS)]
            took = f" took={number * 37 % 900}ms" if number % 3 else ""
            file.write(f"2026-01-01T{clock} {level} [{service}] request {number} für Käufer №{number % 97}{took}\n")
            if number % 500 == 499:
                file.write("a line that is no entry\n")


def read_log(path: pathlib.Path) -> tuple[list[Entry], int]:
    entries, bad = [], 0
    for line in path.read_text().splitlines():
        entry = Entry.parse(line)
        if entry is None:
            bad += 1
        else:
            entries.append(entry)
    return entries, bad


def summarize(job: tuple[str, list[Entry]]) -> dict[str, object]:
    """Run in a worker process: figures of one service."""
    service, entries = job
    times = [entry.took for entry in entries if entry.took is not None]
    levels = collections.Counter(entry.level for entry in entries)
    return {
        "service": service,
        "entries": len(entries),
        "levels": dict(sorted(levels.items())),
        "median_ms": statistics.median(times),
        "slowest_ms": max(times),
        "worker": os.getpid() != os.getppid(),
    }


def store(database: pathlib.Path, entries: list[Entry]) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE entry (at TEXT, level TEXT, service TEXT, text TEXT, took INTEGER)")
        connection.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", map(dataclasses.astuple, entries))
        connection.execute("CREATE INDEX by_service ON entry (service, level)")
    connection.close()


def query(database: pathlib.Path) -> list[tuple[str, int]]:
    connection = sqlite3.connect(database)
    rows = connection.execute(
        "SELECT service, count(*) FROM entry WHERE level = 'ERROR' GROUP BY service ORDER BY service"
    ).fetchall()
    connection.close()
    return [(str(service), int(count)) for service, count in rows]


def checksum_with_coreutils(path: pathlib.Path) -> str:
    """Ask a program of the system what we also compute ourselves."""
    done = subprocess.run(["sha256sum", str(path)], check=True, capture_output=True, text=True)
    return done.stdout.split()[0]


def compressed_size(path: pathlib.Path) -> int:
    """Pipe the file through another program and count what comes out."""
    with path.open("rb") as file:
        gzip = subprocess.Popen(["gzip", "-nc"], stdin=file, stdout=subprocess.PIPE)
        assert gzip.stdout is not None
        size = len(gzip.stdout.read())
        if gzip.wait() != 0:
            raise RuntimeError("gzip failed")
    return size


def histogram(entries: list[Entry], buckets: int = 6, width: int = 30) -> list[str]:
    """Draw how long requests took, one line for each bucket of equal size."""
    times = sorted(entry.took for entry in entries if entry.took is not None)
    size = times[-1] // buckets + 1
    counts = collections.Counter(took // size for took in times)
    most = max(counts.values())
    return [
        f"{bucket * size:4d}–{(bucket + 1) * size - 1:4d} ms {'#' * (counts[bucket] * width // most):<{width}} {counts[bucket]}"
        for bucket in range(buckets)
    ]


def slowest(entries: list[Entry], count: int = 3) -> list[str]:
    """Name the slowest requests, ties in order of time."""
    ranked = sorted((entry for entry in entries if entry.took is not None), key=lambda entry: (-entry.took, entry.when))
    return [f"{entry.service}: {entry.text} ({entry.took} ms)" for entry in ranked[:count]]


def progress(text: str) -> None:
    print(f"progress: {text}", file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fail-with", type=int, default=0, metavar="STATUS")
    return parser.parse_args()


def run(arguments: argparse.Namespace, directory: pathlib.Path) -> dict[str, object]:
    log = directory / "service log.txt"
    make_log(log, arguments.lines)
    progress("log written")

    entries, bad = read_log(log)
    by_service: dict[str, list[Entry]] = collections.defaultdict(list)
    for entry in entries:
        by_service[entry.service].append(entry)
    progress(f"{len(entries)} entries parsed")

    with multiprocessing.Pool(arguments.workers) as workers:
        summaries = workers.map(summarize, sorted(by_service.items()))
    progress("summaries computed")

    database = directory / "log.sqlite"
    store(database, entries)
    digest = hashlib.sha256(log.read_bytes()).hexdigest()
    return {
        "bad": bad,
        "histogram": histogram(entries),
        "slowest": slowest(entries),
        "errors": query(database),
        "summaries": summaries,
        "sha256": digest,
        "sha256_agrees": digest == checksum_with_coreutils(log),
        "compresses": compressed_size(log) < log.stat().st_size // 3,
    }


def main() -> int:
    arguments = parse_arguments()
    started = time.monotonic()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="inventory-"))
    try:
        report = run(arguments, directory)
    finally:
        shutil.rmtree(directory)
    report["left_over"] = directory.exists()
    report["read"] = len(sys.stdin.read())
    json.dump(report, sys.stdout, indent=1, sort_keys=True)
    print()
    progress(f"done, {'fast' if time.monotonic() - started < 60 else 'slow'}")
    if arguments.fail_with:
        sys.exit(arguments.fail_with)
    return 0


if __name__ == "__main__":
    sys.exit(main())
