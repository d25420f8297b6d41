"""The public operations are names of `dhr_lightning.ops`, and looking at the package loads nothing heavy."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from dhr_lightning import ops

METHOD = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")


def imports_for_editors() -> dict[str, str]:
    """What the block for type checkers imports: name and module."""
    tree = ast.parse(Path(ops.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {name.name: node.module for node in block.body for name in node.names}


@pytest.mark.parametrize("name", sorted(ops.__all__))
def test_a_public_name_is_the_object_that_editors_and_mypy_see(name: str):
    module = importlib.import_module(imports_for_editors()[name])
    assert getattr(ops, name) is getattr(module, name)
    assert getattr(ops, name).__module__ == module.__name__


def test_every_list_of_the_public_names_is_the_same():
    assert sorted(imports_for_editors()) == sorted(ops._HOMES) == sorted(ops.__all__)
    assert set(ops.__all__) <= set(dir(ops))


def test_operations_of_the_method_page_are_public():
    for name in ("rebalance", "dense_crf", "CRFSettings", "pamr", "normalize_cam", "transport_plan", "random_walk"):
        assert name in ops.__all__
    assert "`ops.rebalance`" in METHOD


def test_no_module_hides_a_public_name():
    assert not {module.name for module in pkgutil.iter_modules(ops.__path__)} & set(ops.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'dhr_lightning\.ops' has no attribute 'rebalanced'"):
        ops.rebalanced  # noqa: B018


def test_the_package_loads_torch_only_when_an_operation_is_used():
    code = (
        "import sys, dhr_lightning.ops as ops\n"
        "loaded = lambda: [name for name in ('torch', 'numpy') if name in sys.modules]\n"
        "dir(ops), ops.__all__\n"
        "print(loaded())\n"
        "from dhr_lightning.ops import pamr\n"
        "print(loaded())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.splitlines() == ["[]", "['torch', 'numpy']"]
