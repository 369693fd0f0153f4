"""A persistent Python interpreter: what one cell defines, the next one finds."""

import ast
import base64
import builtins
import linecache
import os
import signal
import sys
import traceback
import types

import script
from control import Control

_CO_COROUTINE = 0x80
_ANSWER_CHARACTERS = 8 * 1024 * 1024
_REPRESENTATIONS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "application/json": "_repr_json_",
    "application/javascript": "_repr_javascript_",
}


def serve():
    """Answer each cell with its value, what it displayed, and its error."""
    control = Control()
    script.become_interpreter()
    os.environ.setdefault("MPLBACKEND", "agg")
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.argv = [""]
    sys.path.insert(0, "")
    cells = _Cells(main.__dict__)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for request in control.requests():
        control.send_json(cells.run(request["code"], request["number"]))
    return script.finalize(0)


class _Cells:
    def __init__(self, namespace):
        self._namespace = namespace
        self._displayed = []
        self._loop = None
        builtins.display = self._display

    def _display(self, *values):
        """Show values as notebooks do: each as a bundle of representations."""
        self._displayed += [_bundle(value) for value in values]

    def run(self, code, number):
        self._displayed = []
        answer = {"number": number}
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                value = self._evaluate(code, f"<cell {number}>")
                if value is not None:
                    self._namespace["_"] = value
                    answer["value"] = _bundle(value)
                self._display_figures()
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        except BaseException as error:
            answer["error"] = _describe(error)
        answer["displayed"] = self._displayed
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        return _fit(answer)

    def _evaluate(self, code, name):
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
        self._execute(compile(tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
        if last is None:
            return None
        return self._execute(compile(last, name, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))

    def _execute(self, compiled):
        value = eval(compiled, self._namespace)
        if compiled.co_flags & _CO_COROUTINE:
            import asyncio  # noqa: PLC0415 - most never need it

            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            value = self._loop.run_until_complete(value)
        return value

    def _display_figures(self):
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        import io  # noqa: PLC0415 - most never need it

        for number in pyplot.get_fignums():
            image = io.BytesIO()
            pyplot.figure(number).savefig(image, format="png", bbox_inches="tight")
            self._displayed.append({"image/png": base64.b64encode(image.getvalue()).decode(), "text/plain": "<Figure>"})
        pyplot.close("all")


def _bundle(value):
    """Return every representation that a value offers, by MIME type; binary ones in base64."""
    bundle = {}
    offered = getattr(type(value), "_repr_mimebundle_", None)
    if offered is not None:
        found = offered(value)
        bundle.update(found[0] if isinstance(found, tuple) else found or {})
    for kind, method in _REPRESENTATIONS.items():
        represent = getattr(type(value), method, None)
        if represent is not None and kind not in bundle:
            try:
                found = represent(value)
            except Exception:  # a value may offer what it cannot do; its plain text remains
                continue
            if found is not None:
                bundle[kind] = found[0] if isinstance(found, tuple) else found
    if "text/plain" not in bundle:
        bundle["text/plain"] = repr(value)
    return {kind: base64.b64encode(data).decode() if isinstance(data, bytes) else data for kind, data in bundle.items()}


def _describe(error):
    """Return name, text and trace of an error; the trace begins in the cell."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    try:
        text = str(error)
    except Exception:
        text = "<the error has no text>"
    return {"name": type(error).__name__, "text": text, "traceback": "".join(lines)}


def _fit(answer):
    """Cut what is too large to send, and say so, rather than lose all."""
    size = 0
    for bundle in [answer.get("value") or {}, *answer["displayed"]]:
        for kind, data in list(bundle.items()):
            size += len(data) if isinstance(data, str) else len(repr(data))
            if size > _ANSWER_CHARACTERS:
                bundle[kind] = f"<{kind} left out: the answer would exceed {_ANSWER_CHARACTERS} characters>"
    if "error" in answer:
        for key in ("text", "traceback"):
            answer["error"][key] = answer["error"][key][-1_000_000:]
    return answer
