"""One seed of the ladder: its folder, its overrides, and the stages that run in it."""

import json
import runpy
from dataclasses import dataclass, replace
from pathlib import Path

from dhr_lightning.artifacts.files import read_json
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import Record
from dhr_lightning.pipeline import Plan, Request, Stage, plan_steps, run_stage

STAGES = Path(__file__).resolve().parent.parent / "stages"
PHOTOS_STEPS = {"uss": "stage2_encoder.yaml"}
SEGMENTER_EPOCHS = 6
FAST_EPOCHS = {"cam": 10, "wss": 2}


@dataclass(frozen=True)
class Bench:
    """Where and with what one seed runs.

    Args:
        folder: workspace of the seed.
        seed: of dataset, order, augmentation and weights.
        train: training images.
        val: validation images.
        images: judge masks on so many training images; all if `None`.
        fast: train far too short, to try the benchmark itself.
        photos: root of photos in the VOC layout instead of the built-in data.
        weights: ImageNet weights of the small network for photos.
    """

    folder: Path
    seed: int
    train: int = 800
    val: int = 160
    images: int | None = None
    fast: bool = False
    photos: Path | None = None
    weights: Path | None = None

    @property
    def dataset(self) -> str:
        """Name in the catalog."""
        return "voc" if self.photos else "microworld"

    @property
    def start(self) -> str:
        """Masks that DHR starts from: on photos the base, because MARS needs features that tell background apart."""
        return "base_mask" if self.photos else "mars_mask"

    @property
    def store(self) -> ArtifactStore:
        """Artifacts of the stages."""
        return ArtifactStore(self.folder / "artifacts", self.dataset)

    @property
    def data(self) -> Path:
        """Folder of the images."""
        return self.photos or self.folder / "data"

    def row_store(self, slug: str) -> ArtifactStore:
        """Artifacts of one row of the ladder, which has a store of its own: their kind is the same."""
        return ArtifactStore(self.folder / "ladder" / slug, self.dataset)

    def records(self) -> list[Record]:
        """Training images that are judged."""
        return self.plan("stage3_dhr", "dhr").records("train")[: self.images]

    def run(self, stage: str, steps: tuple[str, ...], *extra: str, workspace: Path | None = None) -> None:
        """Bring steps of a stage up to date.

        Args:
            stage: name of a file in `stages/`.
            steps: names of its steps.
            extra: further overrides.
            workspace: another workspace than the seed's own.
        """
        run_stage(_part(stage, steps), self._request(steps, extra, workspace))

    def plan(self, stage: str, step: str, *extra: str, workspace: Path | None = None) -> Plan:
        """Resolved configuration of one step; arguments as for `run`."""
        return plan_steps(_part(stage, (step,)), self._request((step,), extra, workspace))[0]

    def stage_seconds(self) -> dict[str, dict[str, float | None]]:
        """Seconds of fit and prediction of the steps before the ladder."""
        steps = {"cam": "stage1_cam", "uss": "stage2_uss"} | ({} if self.photos else {"mars": "stage3_dhr"})
        return {step: step_seconds(self.plan(stage, step)) for step, stage in steps.items()}

    def _request(self, steps: tuple[str, ...], extra: tuple[str, ...], workspace: Path | None) -> Request:
        overrides = {"data.workspace": str(workspace or self.folder), "data.root": str(self.data)}
        if self.photos is None:
            overrides["data.options"] = json.dumps({"seed": self.seed, "train": self.train, "val": self.val})
        for name in ("cam", "uss"):
            if self.weights and name in steps:
                overrides[f"{name}.model.init_args.pretrained"] = str(self.weights)
        if "wss" in steps and self.photos is None:
            overrides["wss.trainer.max_epochs"] = str(SEGMENTER_EPOCHS)
        drawn = self.photos is None or steps != ("uss",)  # on photos: axes of frozen features, those of seed 0 for all
        if self.seed and drawn:  # seed 0 is the quick start itself: its artifacts may be put here
            overrides |= {"data.seed": str(self.seed), "seed_everything": str(self.seed)}
        if self.fast:
            overrides |= {f"{name}.trainer.max_epochs": str(FAST_EPOCHS[name]) for name in steps if name in FAST_EPOCHS}
        given = [text for name, value in overrides.items() for text in (f"--{name}", value)]
        if self.photos is None:
            return Request(dataset=self.dataset, overrides=(*given, *extra))
        chosen = {name: file for name, file in PHOTOS_STEPS.items() if name in steps}
        return Request(self.dataset, ("real.yaml",), chosen, (*given, *extra))


def step_seconds(plan: Plan) -> dict[str, float | None]:
    """Seconds of fit and prediction of a finished step; `None` where they were not recorded."""
    state = plan.run_folder / "state.json"
    manifest = plan.store.manifest(*plan.outputs()[-1])
    return {
        "fit": read_json(state).get("seconds") if state.is_file() else None,
        "predict": manifest.info.get("seconds") if manifest else None,
    }


def _part(name: str, steps: tuple[str, ...]) -> Stage:
    """The stage of a file in `stages/` with some of its steps only."""
    stage = runpy.run_path(str(STAGES / f"{name}.py"))["STAGE"]
    return replace(stage, steps=tuple(step for step in stage.steps if step.name in steps))
