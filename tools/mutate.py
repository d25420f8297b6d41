"""Put small faults into a copy of the package, one at a time, and see which of them no test notices.

    python tools/mutate.py                        # a sample that ends within half an hour
    python tools/mutate.py --only ops evaluation --all --minutes 600

mutmut makes the faults ("mutants") in the folder `mutants/`, maps every function to the tests that run through it, and
forks a warm process for each mutant. Results are kept there: the same command goes on where the last one ended, what
a test has killed stays killed, and survivors are tried again when tests change. The table and the diff of every
survivor are in `bench/mutants.md`; survivors that change nothing anybody could see are in `equivalent_mutants.yaml`.
"""

import argparse
import gc
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any

import libcst as cst
import libcst.matchers as m
from mutant_report import Mutant, save_report, summary
from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation import file_mutation, trampoline
from mutmut.mutation.data import SourceFileMutationData
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, setup_source_paths
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers.isolation import MutantResult, MutantRunner, get_mutant_runner

PACKAGES = (
    "ops", "methods", "callbacks", "data", "evaluation", "losses", "models", "artifacts", "provenance", "pipeline",
)  # fmt: skip
FOLDER = Path("mutants")
TRANSPARENT = (  # what a mutant may stand under
    "staticmethod", "classmethod", "torch.no_grad", "lru_cache", "cache", "one_by_one_if_needed",
)  # fmt: skip
MESSAGE = m.Call(func=m.Attribute(attr=m.OneOf(*(m.Name(name) for name in ("debug", "info", "warning", "warn")))))
LATE_IMPORTS = ("torch.distributed.tensor",)  # by `torch.testing.assert_close`; seconds
NO_TESTS, SURVIVED = 33, 0


@dataclass
class Results:
    """Mutants of the chosen places, and the files of mutmut that keep what became of them."""

    files: dict[str, SourceFileMutationData]  # by name of the mutant

    def untested(self) -> list[str]:
        """Names of the mutants that no run has reached yet."""
        return [name for name, file in self.files.items() if file.exit_code_by_key[name] is None]

    def record(self, result: MutantResult) -> None:
        """Keep one result on disk."""
        file = self.files[result.mutant_name]
        file.exit_code_by_key[result.mutant_name] = result.exit_code
        file.save()

    def mutants(self) -> list[Mutant]:
        """All mutants with their results."""
        return [Mutant(name, Path(file.path), file.exit_code_by_key[name]) for name, file in self.files.items()]


def main() -> int:
    """Make mutants, test a part of them and report; returns the exit status."""
    options = _parse()
    end = time.monotonic() + 60 * options.minutes
    os.chdir(Path(__file__).resolve().parents[1])
    # for the processes of the tests: Hypothesis draws the same examples every time, and a sum has one order
    os.environ.update({"CI": "1", "OMP_NUM_THREADS": "1"})
    runner = _prepare(options)
    results = _load(options.only)
    names = _choose(results, options)
    print(f"{len(names)} mutants to test, {(end - time.monotonic()) / 60:.0f} minutes left", flush=True)
    _test(_outcomes(runner, names, end=end, seconds=options.seconds), runner, results)
    mutants = results.mutants()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_report(options.output, mutants)
    print(f"\n{summary(mutants)}\nSurvivors with their diffs: {options.output}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    only = "packages, or folders and modules in them such as methods/features; all packages without it"
    parser.add_argument("--only", nargs="+", default=PACKAGES, help=only)
    parser.add_argument("--count", type=int, default=60, help="mutants of each of them that the sample holds")
    parser.add_argument("--all", action="store_true", help="all mutants instead of a sample")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another sample")
    parser.add_argument("--minutes", type=float, default=28, help="no mutant is started later than this")
    parser.add_argument("--seconds", type=float, default=30, help="tests of one mutant: those that fit in this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants tested at the same time")
    parser.add_argument("--tests", nargs="+", help="folders or files of tests instead of those of pyproject.toml")
    parser.add_argument("--fresh", action="store_true", help="forget all results")
    parser.add_argument("--output", type=Path, default=Path("bench/mutants.md"), help="file of the report")
    return parser.parse_args()


def _prepare(options: argparse.Namespace) -> MutantRunner:
    """Bring `mutants/` up to date, and find the tests of every function."""
    if options.fresh:
        shutil.rmtree(FOLDER, ignore_errors=True)
    if options.tests:
        config().pytest_add_cli_args_test_selection = options.tests
    shutil.rmtree(FOLDER / "tests", ignore_errors=True)  # so that removed tests are gone there, too
    _choose_places()
    _keep_names_of_constructors()
    _warm_up_fully()
    copy_src_dir()
    copy_also_copy_files()
    setup_source_paths()
    with mutmut.CatchOutput(spinner_title="Making mutants"):
        mutmut.create_mutants(options.jobs)
    _forget_tests_of_new_functions()
    runner = get_mutant_runner(options.jobs)
    try:
        mutmut.collect_or_load_stats(runner)
    except SystemExit as error:
        raise SystemExit("A test fails without any mutant. Find it with `make test`, and repair it first.") from error
    if _tests_changed():
        mutmut._reset_mutant_results(lambda name, code: code in (SURVIVED, NO_TESTS))
    mutmut.set_mutant_under_test("")
    return runner


def _choose_places() -> None:
    """Say where mutmut may change something: no texts, no messages, and functions under `torch.no_grad()`, too.

    A message is tested by its class and what it names, not word by word; an f-string elsewhere, such as a file name,
    is behaviour. mutmut by itself leaves out every decorated function.
    """
    operators = file_mutation.mutation_operators
    operators[:] = [pair for pair in operators if pair[1].__name__ != "operator_string"]
    skip: Callable[[Any, cst.CSTNode], bool] = file_mutation.MutationVisitor._skip_node_and_children

    def skip_others(self: file_mutation.MutationVisitor, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Raise) or m.matches(node, MESSAGE):
            self.texts = getattr(self, "texts", []) + m.findall(node, m.FormattedString())
        if isinstance(node, cst.FunctionDef) and node.name.value == "__init__" and _keeps_arguments(node):
            return True
        if isinstance(node, cst.FunctionDef) and len(node.decorators) == 1:
            name = cst.Module([]).code_for_node(node.decorators[0].decorator).partition("(")[0]
            return name not in TRANSPARENT
        return any(node is text for text in getattr(self, "texts", ())) or skip(self, node)

    file_mutation.MutationVisitor._skip_node_and_children = skip_others


def _keeps_arguments(constructor: cst.FunctionDef) -> bool:
    """Whether it is that of a task: Lightning takes hyper-parameters from its frame, which must be that of the code."""
    parameters = constructor.params
    return parameters.star_kwarg is not None or any(one.name.value == "class_names" for one in parameters.params)


def _keep_names_of_constructors() -> None:
    """Let the stack show `__init__` where mutmut's copy of one runs: Lightning saves hyper-parameters by that name."""
    wrap = trampoline.wrap_in_trampoline

    def wrap_named(mutants: dict[str, Any], is_classmethod: bool = False) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:  # noqa: ANN401
            wrapped = wrap(mutants, is_classmethod)(function)
            return _named(wrapped, mutants) if function.__name__ == "__init__" else wrapped

        return decorate

    trampoline.wrap_in_trampoline = wrap_named


def _named(wrapped: Callable[..., None], mutants: dict[str, Any]) -> Callable[..., None]:
    @wraps(wrapped)
    def constructor(*arguments: Any, **options: Any) -> None:
        for copy in mutants.values():  # filled only after the class has been defined
            copy.__code__ = copy.__code__.replace(co_name="__init__")
        wrapped(*arguments, **options)

    return constructor


def _warm_up_fully() -> None:
    """Let forked processes start with what tests import late, and spare them the garbage collection of all of it."""
    warm_up = PytestRunner.warm_up

    def warm_up_fully(self: PytestRunner) -> None:
        warm_up(self)
        for name in LATE_IMPORTS:
            import_module(name)
        gc.collect()
        gc.freeze()

    PytestRunner.warm_up = warm_up_fully


def _forget_tests_of_new_functions() -> None:
    """Have all tests traced again if there are functions that the last trace has not seen."""
    path = FOLDER / "mutmut-stats.json"
    if (
        path.exists()
        and state().current_function_hashes.keys() - json.loads(path.read_text())["function_hashes"].keys()
    ):
        path.unlink()


def _tests_changed() -> bool:
    """Whether the tests differ from those of the last run."""
    digest = hashlib.sha256()
    for path in sorted(Path("tests").rglob("*.py")):
        digest.update(str(path).encode() + path.read_bytes())
    record = FOLDER / "tests.sha256"
    before = record.read_text() if record.exists() else ""
    record.write_text(digest.hexdigest())
    return before != digest.hexdigest()


def _load(places: Sequence[str]) -> Results:
    found, _ = mutmut.collect_source_file_mutation_data(mutant_names=())
    results = Results({name: file for file, name, _ in found if _place(name, places)})
    for place in places:
        if not any(_place(name, (place,)) for name in results.files):
            raise SystemExit(
                f"error: no mutants in {place!r}. Known: {', '.join(PACKAGES)}, or a folder in one of them."
            )
    return results


def _place(name: str, places: Sequence[str]) -> str | None:
    """The first of some places such as `methods/features` in which a mutant lies."""
    module = name.partition(".")[2].replace(".", "/")
    return next((place for place in places if f"{module}/".startswith(f"{place.rstrip('/')}/")), None)


def _choose(results: Results, options: argparse.Namespace) -> list[str]:
    """Untested mutants of the sample, the places in turns; a larger sample holds the smaller one."""
    places: dict[str, list[str]] = {}
    for name in sorted(results.files, key=lambda name: hashlib.sha256(f"{options.seed} {name}".encode()).digest()):
        places.setdefault(str(_place(name, options.only)), []).append(name)
    turns = [(turn, name) for names in places.values() for turn, name in enumerate(names)]
    untested = set(results.untested())
    return [
        name
        for turn, name in sorted(turns, key=lambda pair: pair[0])
        if name in untested and (options.all or turn < options.count)
    ]


def _test(outcomes: Iterator[MutantResult], runner: MutantRunner, results: Results) -> None:
    """Keep the results of all mutants until they are done, the time is over, or the user interrupts."""
    runner.startup()
    try:
        for result in outcomes:
            results.record(result)
            if result.exit_code in (SURVIVED, NO_TESTS):
                print(f"survived: {result.mutant_name}", flush=True)
    except KeyboardInterrupt:
        runner.stop_all_workers()
    finally:
        runner.shutdown()


def _outcomes(runner: MutantRunner, names: Iterable[str], *, end: float, seconds: float) -> Iterator[MutantResult]:
    """Run the tests of mutant after mutant."""
    for name in names:
        if time.monotonic() > end:
            break
        while not runner.has_capacity():
            yield runner.wait_for_result()
        tests, expected = _tests_of(name, seconds)
        limit = ceil(2 * config().timeout_multiplier * (expected + config().timeout_constant))
        runner.submit(name, tests, limit, expected)
    runner.signal_work_complete()
    while runner.pending_count():
        yield runner.wait_for_result()


def _tests_of(name: str, most: float) -> tuple[list[str], float]:
    """Tests that run through the function of a mutant and their time: fast ones first, those of its module sooner."""
    durations = state().duration_by_test
    module, total, chosen = name.split(".")[2].lstrip("_"), 0.0, []
    found = state().tests_by_mangled_function_name.get(mangled_name_from_mutant_name(name), set())
    for test in sorted(found, key=lambda test: durations[test] * (1 if f"test_{module}" in test else 10)):
        total += durations[test]
        if chosen and total > most:
            break
        chosen.append(test)
    return chosen, total


if __name__ == "__main__":
    sys.exit(main())
