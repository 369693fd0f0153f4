"""Runs the fuzzer: `python -m tests.fuzz.fuzz CORPUS [libFuzzer options]`. See `scripts/fuzz`."""

import sys

import atheris

with atheris.instrument_imports(include=["sandbox"]):
    from tests.fuzz.target import check


def main() -> None:
    """Fuzz until the options say stop, or an input is found that breaks a promise."""
    again = f"{sys.executable} -m tests.fuzz.fuzz"  # libFuzzer starts itself anew to merge
    atheris.Setup([again, *sys.argv[1:]], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
