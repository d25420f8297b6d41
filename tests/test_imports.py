"""What an import of the package needs, and what it must not load."""

import importlib.metadata
import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest

import dhr_lightning

ROOT = Path(dhr_lightning.__file__).parents[1]

# Hides, besides the names it is given, every module that Python has on Unix only.
HIDE = """
import importlib, pkgutil, sys
unix = "fcntl resource pwd grp termios tty pty syslog crypt nis ossaudiodev spwd".split()
hidden = {*unix, *sys.argv[1].split()}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""
IMPORT_ALL = """
import pytest

import dhr_lightning
for module in pkgutil.walk_packages(dhr_lightning.__path__, "dhr_lightning."):
    try:
        importlib.import_module(module.name)
        print(module.name)
    except ModuleNotFoundError as error:
        print("needs", error.name)
"""
STATUS = """
from dhr_lightning.__main__ import main
raise SystemExit(main(["status"]))
"""


def python(script: str, hidden: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore:only soft file lock:UserWarning", "-c", HIDE + script, hidden]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def test_every_module_that_needs_no_torch_imports_where_python_has_no_unix_modules(tmp_path: Path):
    result = python(IMPORT_ALL, "torch lightning", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {line for line in lines if line.startswith("needs")} <= {"needs torch", "needs lightning"}
    without_torch = {"__main__", "pipeline", "commands", "config", "artifacts.lock", "data.microworld.generate"}
    assert {f"dhr_lightning.{name}" for name in without_torch} <= set(lines)


def test_a_plan_is_made_where_python_has_no_unix_modules_and_without_torch(tmp_path: Path):
    result = python(STATUS, "torch lightning", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "absent" in result.stdout


def test_the_version_is_that_of_the_distribution_and_loads_nothing_else(tmp_path: Path):
    assert dhr_lightning.__version__ == importlib.metadata.version("dhr-lightning")
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        dhr_lightning.version  # noqa: B018
    script = "import dhr_lightning as package\nprint(package.__version__, 'numpy' in sys.modules)"
    assert python(script, "torch lightning", tmp_path).stdout.split() == [dhr_lightning.__version__, "False"]


def test_type_checkers_are_told_that_the_package_has_types():
    assert importlib.resources.files("dhr_lightning").joinpath("py.typed").is_file()
