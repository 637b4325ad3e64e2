"""docs/invariants.md names tests that are there, and each says what it promises."""

import ast
import re
from pathlib import Path

import pytest
from tests.contract.mutation import MUTANTS

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "invariants.md").read_text("utf-8")
ROWS = {
    int(row[1]): re.findall(r"`(\S+)::(\S+)`", row[0])
    for row in re.finditer(r"^\| (\d+) \|.*$", PAGE, re.MULTILINE)
}


def promises(file: str) -> dict[str, str]:
    """Docstrings of the tests of a file, by name."""
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    functions = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {each.name: ast.get_docstring(each) or "" for each in functions}


def test_all_invariants_have_a_row() -> None:
    """1 to 19, each with a test at least."""
    assert list(ROWS) == list(range(1, 20))
    assert all(ROWS.values())


@pytest.mark.parametrize("number", ROWS)
def test_each_invariant_has_tests_that_say_so(number: int) -> None:
    """Every test that is named is there and has a docstring; those that a mutant shows to be worth
    something are named.
    """
    for file, name in ROWS[number]:
        assert promises(file).get(name), f"{file}::{name}"
    named = {f"{file}::{name}" for file, name in ROWS[number]}
    for mutant in MUTANTS:
        if mutant.invariant == number:
            assert "contract/test_{}.py::test_{}".format(*mutant.test.split("::")) in named
