"""Compare what a recipe makes of the built-in data with figures kept in `tests/golden/`, or write these figures.

    python tools/golden.py                        # run the quick start in bench/golden and compare
    python tools/golden.py --write                # a result changed on purpose: keep the new figures
    python tools/golden.py --chain debug --write  # the same for the small run that the tests compare

A refactoring must leave all figures where they are. They are kept with tolerances, not as hashes, because the kernels
of another processor round differently: the masks of some images on every fourth pixel, the scores of every step, and
samples of the trained weights.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "tests" / "golden"


@dataclass(frozen=True)
class Chain:
    """A run of a recipe on the built-in data, and how far its figures may move.

    Attributes:
        arguments: of the command `run`.
        pixels: share of the pixels of a kind that must stay, the mean over its images.
        score: how far a score may move; 0.01 is a point.
        weight: how far a sampled weight may move, in root mean squares of its module.
        weights: share of the samples of a module that must stay within `weight`.
    """

    arguments: tuple[str, ...]
    pixels: float
    score: float
    weight: float
    weights: float


CHAINS = {
    "debug": Chain(
        ("dhr", "--swap", "uss=patches", "--overlay", "debug.yaml", "--root", "data/debug"), 0.975, 0.01, 0.005, 0.9
    ),
    "quickstart": Chain((), 0.95, 0.01, 0.2, 0.9),
}
SCORES = ("miou", "pixel_accuracy", "vanished_tag_rate", "missing_tag_rate")
IMAGES, STRIDE, SAMPLES = 12, 4, 48
Steps = Mapping[str, Mapping[str, Any]]  # what a workspace remembers of a recipe
log = logging.getLogger("dhr_lightning")


def main() -> int:
    """Run a chain and compare or write; returns the exit status."""
    from dhr_lightning.progress import configure_logging

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chain", choices=CHAINS, default="quickstart", help="which run")
    parser.add_argument("--write", action="store_true", help="keep the figures of this run instead of comparing")
    parser.add_argument("--workspace", type=Path, default=REPOSITORY / "bench" / "golden", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same code")
    options = parser.parse_args()
    configure_logging()
    workspace = options.workspace.resolve() / options.chain
    if not options.resume:
        for name in ("artifacts", "reports", "runs"):
            shutil.rmtree(workspace / name, ignore_errors=True)
    run(options.chain, workspace)
    path, found = FOLDER / f"{options.chain}.json", figures(workspace)
    if options.write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        log.info("written: %s", path)
        return 0
    wrong = differences(json.loads(path.read_text(encoding="utf-8")), found, CHAINS[options.chain])
    log.info("\n".join(wrong) or f"{options.chain}: as in {path}")
    return 1 if wrong else 0


def run(chain: str, workspace: Path) -> None:
    """Run the recipe of a chain in a folder; stops with its exit status if it fails."""
    workspace.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dhr_lightning", "run", *CHAINS[chain].arguments]
    if status := subprocess.run(command, cwd=workspace, env=environment, check=False).returncode:
        raise SystemExit(status)


def figures(workspace: Path) -> dict[str, Any]:
    """Figures of a finished run: `masks` by `STEP[/round_KK]/SPLIT` and image, `scores` likewise, `weights` by step.

    Raises:
        SystemExit: unless exactly one recipe ran in the workspace, to its end.
    """
    recipes = list((workspace / "artifacts" / "microworld" / "recipes").glob("*.json"))
    if len(recipes) != 1:
        raise SystemExit(f"{len(recipes)} recipes ran in {workspace}, expected one. Run without --resume.")
    steps = json.loads(recipes[0].read_text(encoding="utf-8"))["steps"]
    (report,) = (workspace / "reports" / "microworld").glob("*/report.json")
    metrics = json.loads(report.read_text(encoding="utf-8"))["metrics"]
    scores = {key: {name: values[name] for name in SCORES} for key, values in metrics.items()}
    return {"masks": dict(_masks(workspace, steps)), "scores": scores, "weights": dict(_weights(workspace, steps))}


def _masks(workspace: Path, steps: Steps) -> Iterator[tuple[str, dict[str, str]]]:
    from dhr_lightning.artifacts.files import read_mask
    from dhr_lightning.artifacts.kinds import kind_of, round_number

    for step, made in steps.items():
        for output in made["outputs"]:
            address, _, split = output.rpartition("/")
            if not kind_of(address).is_mask:
                continue
            paths = sorted((workspace / "artifacts" / "microworld" / output).glob("*.png"))
            if not paths:
                raise SystemExit(f"{output} holds no mask below {workspace}. Run without --resume.")
            number = round_number(address)
            name = f"{step}/{split}" if number is None else f"{step}/round_{number:02d}/{split}"
            chosen = paths[:: max(1, len(paths) // IMAGES)][:IMAGES]
            yield name, {path.stem: shorten(read_mask(path)[::STRIDE, ::STRIDE]) for path in chosen}


def _weights(workspace: Path, steps: Steps) -> Iterator[tuple[str, dict[str, list[float]]]]:
    import torch

    for step, made in steps.items():
        if made["run"] is None:
            continue
        folder = workspace / "runs" / "microworld" / made["run"]
        newest = max(folder.glob("version_*"), key=lambda path: int(path.name.partition("_")[2]))
        state = torch.load(newest / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
        modules: dict[str, list[torch.Tensor]] = {}
        for name, value in state.items():
            if value.is_floating_point() and value.numel():
                modules.setdefault(".".join(name.split(".")[:2]), []).append(value.flatten().double())
        yield step, {name: _sample(torch.cat(values)) for name, values in modules.items()}


def _sample(values: Any) -> list[float]:  # noqa: ANN401, torch is imported where it is needed
    """Root mean square, then values at equal distances."""
    places = np.linspace(0, len(values) - 1, min(SAMPLES, len(values))).round().astype(int)
    rms = float(values.square().mean().sqrt())
    return [float(f"{value:.4g}") for value in (rms, *values[places].tolist())]


def shorten(mask: np.ndarray) -> str:
    """Label map as text: width, then `label*count` for each run of equal labels, row by row."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    counts = np.diff(np.r_[starts, flat.size])
    return " ".join([str(mask.shape[1]), *(f"{flat[start]}*{n}" for start, n in zip(starts, counts, strict=True))])


def expand(text: str) -> np.ndarray:
    """Inverse of `shorten`."""
    width, *runs = text.split()
    labels, counts = zip(*(map(int, run.split("*")) for run in runs), strict=True)
    return np.repeat(labels, counts).reshape(-1, int(width))


def differences(golden: dict[str, Any], found: dict[str, Any], chain: Chain) -> list[str]:
    """One sentence for each figure that is out of its tolerance, or that only one side has."""
    compared = (("masks", compare_masks), ("scores", compare_scores), ("weights", compare_weights))
    wrong = []
    for part, compare in compared:
        for key in sorted(golden[part].keys() | found[part].keys()):
            if key not in golden[part] or key not in found[part]:
                wrong.append(f"{part} of {key}: {'new' if key in found[part] else 'gone'}")
            elif text := compare(golden[part][key], found[part][key], chain):
                wrong.append(f"{part} of {key}: {text}")
    return wrong


def compare_masks(golden: dict[str, str], found: dict[str, str], chain: Chain) -> str:
    """What is wrong with the masks of a kind, by image; empty if nothing."""
    if golden.keys() != found.keys():
        return f"images {', '.join(found)} instead of {', '.join(golden)}"
    pairs = [(expand(golden[image]), expand(found[image])) for image in golden]
    if any(one.shape != other.shape for one, other in pairs):
        return "sizes differ"
    equal = [float(np.mean(one == other)) for one, other in pairs]
    worst = list(golden)[int(np.argmin(equal))]
    if np.mean(equal) >= chain.pixels:
        return ""
    return f"{np.mean(equal):.1%} of the pixels are equal, expected {chain.pixels:.1%}; {worst} {min(equal):.1%}"


def compare_scores(golden: dict[str, float | None], found: dict[str, float | None], chain: Chain) -> str:
    """What is wrong with the scores of a kind; empty if nothing."""
    wrong = [
        f"{name} {found[name]} instead of {value}"
        for name, value in golden.items()
        if (value is None) != (found[name] is None) or abs((found[name] or 0) - (value or 0)) > chain.score
    ]
    return ", ".join(wrong)


def compare_weights(golden: dict[str, list[float]], found: dict[str, list[float]], chain: Chain) -> str:
    """Modules of a step whose weights are others; empty if none."""
    if golden.keys() != found.keys():
        return f"modules {', '.join(found)} instead of {', '.join(golden)}"
    return ", ".join(name for name in golden if not _same_weights(golden[name], found[name], chain))


def _same_weights(golden: Sequence[float], found: Sequence[float], chain: Chain) -> bool:
    one, other = np.array(golden), np.array(found)
    if one.shape != other.shape:
        return False
    return bool(np.mean(np.abs(one - other) <= chain.weight * one[0]) >= chain.weights)


if __name__ == "__main__":
    sys.exit(main())
