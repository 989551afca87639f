from __future__ import annotations

import ast

import pytest

from tests.mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_each_mutant_still_fits_the_code_and_is_python(mutant: Mutant) -> None:
    ast.parse(mutant.source())
