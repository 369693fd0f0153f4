"""What a cell shows, as text: values by MIME type, errors, and an answer that fits into one message."""

import base64
import json
import os
import sys
import traceback
from itertools import islice

_ANSWER_BYTES = 8 * 1024 * 1024
_ANSWER_VALUES = 90_000  # the host takes some more of both
_TOO_MUCH = f"the answer would exceed {_ANSWER_BYTES} bytes or {_ANSWER_VALUES} values"
_MARKS, _MARKS_BYTES = 4, 16  # around one representation
_MOST_KINDS = 100
_MOST_DEPTH = 100  # the host takes 200 levels
_PLAIN_CHARACTERS = 100_000
_ERROR_CHARACTERS = 100_000
_NOTE_BYTES = 200
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
_HOME = os.path.dirname(os.path.abspath(__file__)) + os.sep
MOST_DISPLAYED = 10_000


def bundle(value):
    """Return every representation that a value offers, by MIME type; binary ones in base64."""
    found = {}
    offered = _offered(value, "_repr_mimebundle_", include=None, exclude=None)
    if isinstance(offered, dict):
        found.update({str(kind)[:_NOTE_BYTES]: data for kind, data in islice(offered.items(), _MOST_KINDS)})
    for kind, method in _REPRESENTATIONS.items():
        if kind not in found and (data := _offered(value, method)) is not None:
            found[kind] = data
    if "text/plain" not in found:
        found["text/plain"] = repr(value)
    return {kind: _sendable(kind, data) for kind, data in found.items()}


def _offered(value, method, **arguments):
    """Return what the value's method gives; None if it has none, or offers what it cannot do."""
    represent = getattr(type(value), method, None)
    if represent is None:
        return None
    try:
        data = represent(value, **arguments)
    except Exception:
        return None
    return data[0] if isinstance(data, tuple) and data else data


def _sendable(kind, data):
    if isinstance(data, (bytes, bytearray)):
        return base64.b64encode(data).decode()
    if isinstance(data, str):
        return data
    try:
        plain = json.loads(json.dumps(data))
    except (TypeError, ValueError, RecursionError):
        return f"<{kind} left out: it is no text and no JSON>"
    return f"<{kind} left out: it is nested too deep>" if _is_deep(plain, _MOST_DEPTH) else plain


def _is_deep(data, levels):
    """Return whether containers are nested in each other on more levels than that."""
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else None
    return inner is not None and (levels == 0 or any(_is_deep(one, levels - 1) for one in inner))


def describe(error):
    """Return name, text and trace of an error; the trace begins in the cell."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
        trace = trace.tb_next
    _cut_end(trace)
    name = type.__dict__["__name__"].__get__(type(error))[:1000]
    try:
        text = str(error)
    except BaseException:
        text = "<the error has no text>"
    try:
        lines = "".join(traceback.format_exception(type(error), error, trace))
    except BaseException:
        lines = f"{name}: {text}\n"
    return {"name": name, "text": _beginning(text, _ERROR_CHARACTERS), "traceback": _end(lines)}


def _cut_end(trace):
    """Let a trace end in the cell too: where an interrupt was raised is nobody's concern."""
    while trace is not None and trace.tb_next is not None:
        if trace.tb_next.tb_frame.f_code.co_filename.startswith(_HOME):
            trace.tb_next = None
        trace = trace.tb_next


def fit(answer):
    """Cut what is too large to send, and say so, rather than lose all."""
    if _fits(answer):
        return answer
    room = _Room(_ANSWER_BYTES - sum(_measure(text)[0] for text in answer.get("error", {}).values()))
    if "value" in answer:
        room.fit(answer["value"])
    displayed = answer["displayed"]
    for number, shown in enumerate(displayed):
        if not room.fit(shown):
            displayed[number:] = [{"text/plain": f"<more was left out: {_TOO_MUCH}>"}]
            break
    return answer


class _Room:
    """What is left of an answer's bytes and values."""

    def __init__(self, size):
        self._bytes = size
        self._values = _ANSWER_VALUES

    def fit(self, shown):
        """Cut what is too large in one bundle; return whether anything of it is left."""
        for kind, data in list(shown.items()):
            name = _measure(kind)[0] + _MARKS_BYTES
            note = f"<{kind} left out: {_TOO_MUCH}>"
            reserve = name + _measure(note)[0] + _NOTE_BYTES
            if reserve > self._bytes or self._values < 2 * _MARKS:
                del shown[kind]
                continue
            size, values = _measure(data)
            if size > self._bytes - reserve or values > self._values - 2 * _MARKS:
                if kind == "text/plain" and self._bytes > 12 * _PLAIN_CHARACTERS + reserve:
                    note = _beginning(data, _PLAIN_CHARACTERS)
                shown[kind] = note
                size, values = _measure(note)
            self._bytes -= name + size
            self._values -= _MARKS + values
        return bool(shown)


def _measure(data):
    """Return how many bytes it takes, as JSON and in the host's memory, and how many values there are in it."""
    text = json.dumps(data)
    if isinstance(data, str):
        return max(len(text), sys.getsizeof(data)), 0
    width = 4 if "\\ud" in text else 2 if "\\u" in text else 1
    return len(text) * width, sum(text.count(mark) for mark in ",:[{")


def _fits(answer):
    """Return whether it is so short that nothing needs to be measured: no character takes more than 12 bytes."""
    shown = answer.get("value") or {}
    texts = [*shown, *shown.values()]
    return not answer["displayed"] and all(isinstance(text, str) for text in texts) and sum(map(len, texts)) < 100_000


def _beginning(text, size):
    return text if len(text) <= size else f"{text[:size]}… <{len(text) - size} more characters were left out>"


def _end(text):
    left_out = len(text) - _ERROR_CHARACTERS
    return text if left_out <= 0 else f"<{left_out} characters were left out> …{text[-_ERROR_CHARACTERS:]}"
