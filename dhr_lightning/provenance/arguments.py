"""Which arguments a constructor takes, read from its source: importing a task takes longer than all of planning."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, resolve_name
from typing import NamedTuple


@cache
def constructor_arguments(path: str) -> frozenset[str] | None:
    """Names that the constructor of a class takes, with those of its bases if it hands `**options` on to them.

    Args:
        path: import path of the class.

    Returns:
        The names; `None` where the source does not tell: `**options` are used in another way, or a class is not found.
    """
    found = _find_class(path)
    if found is None:
        return None
    module, node = found
    init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    names: frozenset[str] = frozenset()
    if init is not None:
        names = frozenset(one.arg for one in [*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs][1:])
        if init.args.kwarg is None:
            return names
        if not _hands_on(init, init.args.kwarg.arg):
            return None
    for base in node.bases:
        inherited = constructor_arguments(_import_path(base, module))
        if inherited is None:
            return None
        names |= inherited
    return names


def _hands_on(init: ast.FunctionDef, options: str) -> bool:
    """Whether a constructor gives its `**options` to the bases, and to nothing else."""
    uses = [node for node in ast.walk(init) if isinstance(node, ast.Name) and node.id == options]
    calls = [node for node in ast.walk(init) if isinstance(node, ast.Call)]
    given = [word.value for one in calls if ast.unparse(one.func) == "super().__init__" for word in one.keywords]
    return bool(uses) and all(any(use is value for value in given) for use in uses)


class _Module(NamedTuple):
    """The classes that a module defines, and the import paths of the names that it imports."""

    classes: Mapping[str, ast.ClassDef]
    imports: Mapping[str, str]


def _find_class(path: str) -> tuple[str, ast.ClassDef] | None:
    """A class and the module that defines it, which another may have imported it from."""
    name, _, below = path.rpartition(".")
    module = _read(name)
    if module is None:
        return None
    if below in module.classes:
        return name, module.classes[below]
    return _find_class(module.imports[below]) if below in module.imports else None


def _import_path(base: ast.expr, module: str) -> str:
    """Import path of a base class as a module names it."""
    name, dot, below = ast.unparse(base).partition(".")
    read = _read(module)
    return f"{read.imports.get(name, f'{module}.{name}') if read else name}{dot}{below}"


@cache
def _read(name: str) -> _Module | None:
    """Look at the source of a module, found without importing the packages around it; `None` if there is none."""
    first, *rest = name.split(".")
    try:
        spec, path = find_spec(first) if first else None, first
    except ModuleNotFoundError:  # a finder that hides the package
        return None
    for part in rest:
        path = f"{path}.{part}"
        spec = PathFinder.find_spec(path, spec.submodule_search_locations) if spec else None
    get_source = getattr(spec.loader, "get_source", None) if spec else None
    source = get_source(name) if get_source else None
    if spec is None or source is None:
        return None
    nodes = ast.parse(source).body
    package = name if spec.submodule_search_locations else name.rpartition(".")[0]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    return _Module(classes, dict(named for node in nodes for named in _imported(node, package)))


def _imported(node: ast.stmt, package: str) -> Iterator[tuple[str, str]]:
    """Names that a statement imports, and what they mean."""
    if isinstance(node, ast.Import):
        for one in node.names:
            yield (one.asname, one.name) if one.asname else (one.name.partition(".")[0],) * 2
    elif isinstance(node, ast.ImportFrom):
        source = resolve_name("." * node.level + (node.module or ""), package)
        yield from ((one.asname or one.name, f"{source}.{one.name}") for one in node.names)
