"""Confirm the choice of the mask step on validation photos: base masks, the published order and the default.

    python benchmarks/confirm.py --workspace . --photos VOC --weights FILE

The workspace is one in which `make real` has finished stages 1 and 2. Its classifier has never seen these photos; their
tags are taken as known, as for training photos, and their masks are read by the evaluation alone.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from frequent import frequent_miou, frequent_names
from ladder_rows import Ladder
from ladder_setup import Bench
from ladder_table import ROWS
from torch.utils.data import DataLoader

from dhr_lightning.data.dataset import SegmentationDataset
from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.sample import Batch, collate
from dhr_lightning.ops.cam import compact_keys
from dhr_lightning.progress import configure_logging, track
from dhr_lightning.reporting.evaluate import count_masks
from dhr_lightning.reporting.figures import Figures, all_figures
from dhr_lightning.reporting.kinds import MaskKind
from dhr_lightning.reporting.truth import DatasetTruth, TruthFacts, UInt8, resolve_truth
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.methods.features.task import USSTask

SLUGS = ("reference", "uss_wss_strong", "majority", "unguarded", "guarded")


class Maker:
    """Masks of photos that no stage has predicted, from the networks of a workspace."""

    def __init__(self, bench: Bench) -> None:
        plans = {"cam": bench.plan("stage1_cam", "cam"), "uss": bench.plan("stage2_uss", "uss")}
        made = {step: plan.store.manifest(step, "train") for step, plan in plans.items()}
        paths = {step: Path(manifest.checkpoint["path"]) for step, manifest in made.items()}
        restore = {"map_location": "cpu", "weights_only": True, "pretrained": False}
        self.cam = CAMTask.load_from_checkpoint(paths["cam"], **restore).eval()
        self.uss = USSTask.load_from_checkpoint(paths["uss"], **restore).eval()
        self.cam.background = made["cam"].info["background"]
        self.ladder = Ladder(bench.plan("stage3_dhr", "dhr"), paths["cam"], bench.start)
        self.start = bench.start

    @torch.no_grad()
    def masks(self, batch: Batch) -> dict[str, list[UInt8]]:
        """Masks of one batch of whole photos by the name of their row."""
        batch["image"] = normalize(batch["pixels"], batch["valid"])
        keys, present = compact_keys(batch["tags"], offset=1, include_background=False)
        batch["mask"] = self.cam.base_masks(batch, self.cam.compact_cam(batch, keys), keys, present)
        canvas = tuple(batch["pixels"].shape[-2:])
        whole = {**batch, "geometry": [geometry._replace(size=canvas) for geometry in batch["geometry"]]}
        batch["uss"] = torch.stack([features for (features,) in self.uss.predict_step(whole, 0)["uss"]])
        sizes = [geometry.size for geometry in batch["geometry"]]
        rows = {
            "base": [mask[:h, :w].numpy().astype(np.uint8) for mask, (h, w) in zip(batch["mask"], sizes, strict=True)]
        }
        for slug, masks, _ in self.ladder.masks({self.start: batch}, list(SLUGS)):
            rows[slug] = [mask.astype(np.uint8) for mask in masks]
        return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="folder of a run on photos")
    parser.add_argument("--photos", type=Path, required=True, help="photos in the VOC layout")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of MobileNetV2")
    parser.add_argument("--images", type=int, help="judge the first N photos only")
    options = parser.parse_args()
    configure_logging()
    bench = Bench(options.workspace.resolve(), 0, photos=options.photos, weights=options.weights)
    plan = bench.plan("stage3_dhr", "dhr")
    records = plan.records("val")[: options.images]
    dataset = SegmentationDataset(records, plan.info.classes)
    size = int(plan.config["data"]["predict_batch_size"])
    loader = DataLoader(dataset, batch_size=size, collate_fn=lambda samples: collate(samples, divisor=16))
    maker, truth = Maker(bench), DatasetTruth(plan.info, bench.data)
    masks: dict[str, dict[str, UInt8]] = {}
    for batch in track(loader, "val photos"):
        for slug, made in maker.masks(batch).items():
            masks.setdefault(slug, {}).update(zip(batch["id"], made, strict=True))
    kinds = [MaskKind(slug, "val", tuple(found)) for slug, found in masks.items()]
    facts = resolve_truth(truth)
    result = count_masks(truth, facts, kinds, lambda kind, image, _: masks[kind.kind][image], title="val photos")
    print(_table(all_figures([result], facts), kinds, facts))


def _table(figures: dict[str, Figures], kinds: list[MaskKind], facts: TruthFacts) -> str:
    names = frequent_names(facts)
    lines = [
        f"{len(kinds[0].ids)} validation photos, tags known.",
        "",
        "| masks | frequent | all | vanished tags | background |",
        "|---|---|---|---|---|",
    ]
    for kind in kinds:
        found = figures[kind.key]
        label = ROWS[kind.kind].label.replace("mars +", "base +") if kind.kind in ROWS else kind.kind
        cells = (
            frequent_miou(found["iou"], names),
            found["miou"],
            found["vanished_tag_rate"],
            found["iou"]["background"],
        )
        lines.append(f"| {label} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
