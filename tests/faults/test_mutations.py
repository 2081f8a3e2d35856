"""The script of deliberate faults still finds the places that it breaks."""

import pytest
from helpers.snakemake_copy import copy_tree
from mutations import MUTATIONS, apply


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.fault)
def test_every_fault_can_be_made(mutation, tmp_path):
    root = copy_tree(tmp_path / "copy")
    before = (root / f"src/robreg/{mutation.module}.py").read_text()
    apply(mutation, root)
    after = (root / f"src/robreg/{mutation.module}.py").read_text()
    compile(after, mutation.module, "exec")
    assert after != before
