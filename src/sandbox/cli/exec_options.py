"""The options of `sandbox exec`, which `sandbox trace exec` has, too: one list of them, and what they ask for.

Annotations are evaluated here as they are defined: to do that later, for each command, would take milliseconds.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from typer.core import TyperCommand

from sandbox.cli.exec_request import ExecRequest
from sandbox.cli.given import Given
from sandbox.cli.options import (
    CodeOption,
    CpusOption,
    CwdOption,
    EnvFileOption,
    EnvOption,
    ExcludeOption,
    ForceOption,
    GetLimitOption,
    GetOption,
    IdleTimeoutOption,
    ImageOption,
    LanguageOption,
    MemoryOption,
    ModuleOption,
    NoStdinOption,
    ProfileOption,
    ProjectOption,
    PtyOption,
    PutOption,
    TimeoutOption,
    TransferTimeoutOption,
    UserOption,
    WordsArgument,
)
from sandbox.cli.program import Asked

_AFTER_DASHES = "sandbox.after_dashes"


class ExecCommand(TyperCommand):
    """A command that knows whether its positional arguments came after `--`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_AFTER_DASHES] = self._ends_with_dashes(args)
        return super().parse_args(ctx, args)

    def _ends_with_dashes(self, args: list[str]) -> bool:
        """Whether it is a `--` that ends the options, and not the first other word. The parser does not tell."""
        taking = {name for one in self.params if not getattr(one, "is_flag", False) for name in one.opts}
        words = iter(args)
        for word in words:
            if word == "--":
                return True
            if word == "-" or not word.startswith("-"):
                return False
            if word.startswith("--"):
                has_value = word in taking
            else:  # letters, of which one may take the rest of the word or else the next one
                first = next((at for at in range(1, len(word)) if f"-{word[at]}" in taking), len(word))
                has_value = first == len(word) - 1
            if has_value:
                next(words, None)
        return False


def _exec_request(
    words: WordsArgument = None,
    code: CodeOption = None,
    module: ModuleOption = None,
    project: ProjectOption = None,
    exclude: ExcludeOption = None,
    language: LanguageOption = None,
    timeout: TimeoutOption = None,
    idle_timeout: IdleTimeoutOption = None,
    env: EnvOption = None,
    env_file: EnvFileOption = None,
    cwd: CwdOption = None,
    user: UserOption = None,
    put: PutOption = None,
    get: GetOption = None,
    get_limit: GetLimitOption = None,
    transfer_timeout: TransferTimeoutOption = None,
    force: ForceOption = False,
    no_stdin: NoStdinOption = False,
    pty: PtyOption = False,
    memory: MemoryOption = None,
    cpus: CpusOption = None,
    image: ImageOption = None,
    profile: ProfileOption = None,
    *,
    is_command: bool,
) -> ExecRequest:
    return ExecRequest(
        program=Asked(tuple(words or ()), code, module, is_command, language, project),
        given=Given(
            image=image,
            memory=memory,
            cpus=cpus,
            profile=profile,
            timeout=timeout,
            idle_timeout=idle_timeout,
            user=user,
            cwd=cwd,
            get_limit=get_limit,
            transfer_timeout=transfer_timeout,
            exclude=tuple(exclude) if exclude else None,
        ),
        env=tuple(env or ()),
        env_file=tuple(env_file or ()),
        put=tuple(put or ()),
        get=tuple(get or ()),
        force=force,
        no_stdin=no_stdin,
        pty=pty,
    )


_SHARED = {name: one for name, one in inspect.signature(_exec_request).parameters.items() if name != "is_command"}


def takes_exec_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose own arguments are the context, a request and options, all options of `exec` for that."""
    own = dict(inspect.signature(command, eval_str=True).parameters)
    ctx, request, *_ = own

    @wraps(command)
    def with_request(**given: Any) -> None:
        asked = {name: given.pop(name) for name in _SHARED}
        context = given.pop(ctx)
        command(context, _exec_request(**asked, is_command=context.meta[_AFTER_DASHES]), **given)

    del own[request]
    parameters = {ctx: own.pop(ctx)} | _SHARED | own
    signature = inspect.Signature([one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters.values()])
    setattr(with_request, "__signature__", signature)  # noqa: B010 - inspect looks for it, mypy sees no such name
    with_request.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return with_request
