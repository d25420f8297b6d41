"""The registry of methods: those of the package and those that other packages bring."""

import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from dhr_lightning import steps
from dhr_lightning.artifacts.kinds import KINDS
from dhr_lightning.data.catalog import SPLITS
from dhr_lightning.errors import ConfigError
from dhr_lightning.steps import ENTRY_POINTS, Read, StepSpec, did_you_mean, get_method, method_of_task, methods

OWN = ("cam", "crf", "dhr", "fitted", "mars", "pamr", "patches", "stego", "wss")
SPEC = """from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec("{name}", "{module}.task.Toy", "from outside", writes={{"mask": Write()}})
"""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Registered methods are remembered: not beyond a test here."""
    methods.cache_clear()
    yield
    methods.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write packages with a method each, and register them as entry points."""
    points: list[EntryPoint] = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(steps, "entry_points", lambda *, group: points if group == ENTRY_POINTS else [])

    def put(module: str, text: str, *, config: str | None = None) -> Path:
        folder = tmp_path / module
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "spec.py").write_text(text)
        if config is not None:
            (folder / "config.yaml").write_text(config)
        for name in (module, f"{module}.spec"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        points.append(EntryPoint(module, f"{module}.spec:SPEC", ENTRY_POINTS))
        return folder

    return put


def test_every_folder_with_a_spec_is_a_method():
    assert set(OWN) <= set(methods())
    root = Path(steps.__file__).parent / "methods"
    assert len(list(root.glob("**/spec.py"))) == len(methods())
    assert all(method.config is not None and method.config.is_file() for method in methods().values())


@pytest.mark.parametrize("name", OWN)
def test_a_spec_names_kinds_splits_ports_and_arguments_that_there_are(name: str):
    spec = get_method(name).spec
    assert spec.name == name
    assert spec.about
    assert set(spec.writes) <= set(KINDS)
    assert all(set(write.splits) <= set(SPLITS) for write in spec.writes.values())
    assert all(set(read.kinds) <= set(KINDS) for read in spec.reads.values())
    for kind, port in spec.forwards.items():
        assert kind in spec.writes
        assert kind in spec.reads[port].kinds
    task = spec.task_class()
    assert task.__name__ == spec.task_name
    classes = [one for one in task.__mro__ if "__init__" in vars(one)]
    parameters = {name for one in classes for name in inspect.signature(one).parameters}
    assert set(spec.predict_only) <= parameters, set(spec.predict_only) - parameters


def test_inputs_that_the_fit_depends_on():
    cases = ((Read(), True), (Read(("mask",)), False), (Read(("mask",), predict=True), False))
    cases += ((Read(("mask",), fit=True), True), (Read(("mask",), refresh=True), True))
    assert [read.in_fit for read, _ in cases] == [expected for _, expected in cases]
    assert [read.weights for read, _ in cases] == [True, False, False, False, False]


def test_a_method_from_outside_is_registered_with_its_settings(install: Callable[..., Path]):
    folder = install("toy_method", SPEC.format(name="toy", module="toy_method"), config="model: {}\n")
    (folder / "task.py").write_text("class Toy: pass\n")
    method = get_method("toy")
    assert method.config == folder / "config.yaml"
    assert "toy_method.task" not in sys.modules  # planning imports no task
    assert method.spec.task_class().__name__ == "Toy"
    assert method_of_task("toy_method.task.Toy") is method_of_task("Toy") is method
    assert set(OWN) < set(methods())


def test_a_method_from_outside_needs_no_settings(install: Callable[..., Path]):
    install("bare_method", SPEC.format(name="bare", module="bare_method"))
    assert get_method("bare").config is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "raise RuntimeError('out of order')",
            r"'broken_method' of .* cannot be loaded \(RuntimeError\('out of order'",
        ),
        ("import no_such_module", r"cannot be loaded \(ModuleNotFoundError.*Repair or uninstall it"),
        ("other = 1", r"cannot be loaded \(AttributeError"),
        ("SPEC = {'name': 'toy'}", r"'broken_method' of module broken_method\.spec:SPEC is no StepSpec, but dict"),
        (SPEC.format(name="cam", module="broken_method"), r"called 'cam': dhr_lightning\..*CAMTask and broken_method"),
    ],
)
def test_a_method_that_cannot_be_used_names_its_package(install: Callable[..., Path], text: str, message: str):
    install("broken_method", text)
    with pytest.raises(ConfigError, match=message):
        methods()


def test_two_packages_cannot_bring_the_same_name(install: Callable[..., Path]):
    for module in ("first_method", "second_method"):
        install(module, SPEC.format(name="toy", module=module))
    with pytest.raises(ConfigError, match=r"called 'toy': first_method\.task\.Toy and second_method\.task\.Toy"):
        methods()


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown method 'stegos'\. Did you mean stego\?"):
        get_method("stegos")
    with pytest.raises(ConfigError, match=r"Unknown method 'xyz'\. Known: .*cam"):
        get_method("xyz")
    assert did_you_mean("b", {"a": 1}) == "Known: a."
    assert method_of_task("NoTask") is None


def test_methods_are_found_once(monkeypatch: pytest.MonkeyPatch):
    first = methods()
    monkeypatch.setattr(steps, "entry_points", None)
    assert methods() is first
    with pytest.raises(TypeError):
        first["new"] = None  # type: ignore[index]


def test_a_spec_cannot_be_changed():
    with pytest.raises(AttributeError):
        StepSpec("a", "b.C", "d").name = "other"  # type: ignore[misc]
