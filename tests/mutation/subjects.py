"""What is mutated, which changes are made to it, and which tests must notice them without a VM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """Modules, and the tests that keep them honest."""

    modules: tuple[str, ...]
    tests: str
    """pytest's arguments; those that kill soonest come first."""


SUBJECTS = (
    Subject(
        ("src/sandbox/wire.py", "src/sandbox/message.py"),
        "tests/unit/test_protocol_document.py tests/unit/test_wire.py tests/unit/test_message.py",
    ),
    Subject(
        tuple(
            f"src/sandbox/pool/{name}.py"
            for name in (
                *("pool", "shelf", "slot", "succession", "policy", "keeper", "queue"),
                *("statistics", "lease", "broadcast", "canary", "health"),
            )
        ),
        "tests/unit/test_pool_policy.py tests/adversity/test_pool_books.py tests/adversity/test_pool_contract.py "
        "tests/proofs/test_generations_rollover.py tests/adversity/test_pool_model.py -k 'not real'",
    ),
)
MODEL_STEPS = 2000

LEFT_OUT = (
    # One change of an arithmetic operator is enough: ten more would be found by the same test. `|` is that of types.
    r"core/ReplaceBinaryOperator_(?!Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|BitAnd_BitOr)",
    # A comparison is negated, and its boundary moved.
    r"core/ReplaceComparisonOperator_(?!Lt_LtE|Lt_GtE|Gt_GtE|Gt_LtE|LtE_Lt$|LtE_Gt$|GtE_Gt$|GtE_Lt$"
    r"|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is$)",
)
"""Cosmic Ray's operators that would only make the number of killed mutants larger."""
