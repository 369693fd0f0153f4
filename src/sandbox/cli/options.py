"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ImageOption = Annotated[
    str | None, typer.Option("--image", help="Recipe name, or digest of a built image; by default, default.")
]
MemoryOption = Annotated[
    str | None, typer.Option(help="Guest memory in MiB, or with a suffix: 512M, 2G; by default 256.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Image and size by a name of sandbox.toml; see config show."),
]
EnvOption = Annotated[list[str] | None, typer.Option("--env", "-e", help="K=V, or K to pass on your own value.")]
EnvFileOption = Annotated[list[Path] | None, typer.Option("--env-file", help="A file of K=V lines.")]
CwdOption = Annotated[str | None, typer.Option("--cwd", help="Working directory in the guest.")]
UserOption = Annotated[str | None, typer.Option("--user", help="User in the guest; root is one.")]
WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SCRIPT | -- COMMAND] [ARGS]...",
        help="A file of this host, or - for standard input; after --, a command of the guest. Then its arguments.",
    ),
]
CodeOption = Annotated[str | None, typer.Option("-c", help="Run this code instead of a file.", metavar="CODE")]
ModuleOption = Annotated[
    str | None, typer.Option("-m", help="Run this module as python3 -m does; see --project.", metavar="MODULE")
]
ProjectOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Copy what this directory holds into the working directory; a script in it runs there."
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="What --project leaves out; by default .git, .venv, caches and the like."),
]
LanguageOption = Annotated[
    str | None,
    typer.Option(help="python, bash or another one of the image; by default from the file's ending or first line."),
]
CpusOption = Annotated[
    int | None, typer.Option("--cpus", min=1, max=64, help="Virtual processors of the guest; by default 1.")
]
NoStdinOption = Annotated[
    bool, typer.Option("--no-stdin", "-n", help="Leave our standard input alone; the program's is empty.")
]
TimeoutOption = Annotated[float | None, typer.Option(help="Kill the program after so many seconds (exit code 124).")]
IdleTimeoutOption = Annotated[float | None, typer.Option(help="The same after so many seconds without output.")]
PutOption = Annotated[
    list[str] | None, typer.Option(metavar="HOST[:GUEST]", help="Copy a file or directory in before the run.")
]
GetOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GUEST[:HOST]", help="Copy one out afterwards, also after a failure; GUEST:- prints a file."),
]
GetLimitOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Largest number of bytes that each --get copies: 64M, 2G; by default 1G."),
]
TransferTimeoutOption = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Give up a --put or --get that takes longer; by default 600."),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="--get may merge a directory into one that exists, and replace files in it.")
]
PtyOption = Annotated[bool, typer.Option("--pty", help="Run in a terminal of the size of yours; Enter ~ . leaves it.")]
TraceJsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write trace events, for Perfetto or Chrome.")
]
TraceHtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the picture as a page.")]
WarmUpOption = Annotated[
    int, typer.Option(metavar="N", min=0, help="Restore so many clones first: what a process does once is done then.")
]
ShortestOption = Annotated[
    float, typer.Option(metavar="MS", min=0, help="Draw stages shorter than this as one; --json has them all.")
]
