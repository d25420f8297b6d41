"""The command `segment`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dhr_lightning.pipeline.request import add_data_options, split_overrides, to_request
from dhr_lightning.predicting.model import Settings, build
from dhr_lightning.predicting.segment import Job, photos_of, read_allowed, segment
from dhr_lightning.predicting.sources import find_source

DEFAULT_OUTPUT = "segmented"


def run_segment(arguments: Sequence[str]) -> int:
    """Parse the command line and predict.

    Returns:
        0 if every photo has a mask, 1 if some could not be read.
    """
    words, overrides = split_overrides(arguments)
    options = _parser().parse_args(words)
    images = photos_of(options.photos)
    request = to_request(options, overrides)
    scales = tuple(options.scales) if options.scales else None
    settings = Settings(scales, flip=options.flip, crf=options.crf, tile=options.tile)
    model = build(find_source(options.source, request, step=options.step), device=options.device, settings=settings)
    tags = read_allowed(Path(options.tags) if options.tags else None, images, model.class_set.tag_names)
    job = Job(images, Path(options.output), tags, overlays=options.overlays)
    return int(segment(model, job, force=options.force) > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dhr_lightning segment",
        description="Predict new photos: masks (palette PNG), confidence (16-bit PNG), overlays and predictions.csv. "
        "Interrupted, the same command continues. Exit status 1 if a photo could not be read.",
        epilog="segment photos/ --from frozen --data my_photos.yaml --output masks/",
        allow_abbrev=False,
    )
    parser.add_argument("photos", nargs="+", metavar="FOLDER|FILE", help="photos, or folders of photos")
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="RECIPE|RUN|FILE",
        help="a recipe that has run, as `status` shows it, the folder of a fit, a checkpoint, or an exported model "
        "(.onnx, .safetensors)",
    )
    parser.add_argument("--output", default=DEFAULT_OUTPUT, metavar="DIR", help=f"default: {DEFAULT_OUTPUT}")
    add_data_options(parser)
    parser.add_argument("--weights", metavar="FILE", help="weights of the frozen backbone of an exported .safetensors")
    parser.add_argument("--step", help="segmenter of the recipe (default: its last)")
    parser.add_argument("--tags", metavar="FILE", help="table of tags: only these classes may appear in a photo")
    parser.add_argument("--tile", type=int, metavar="N", help="side of overlapping tiles in pixels; 0 never "
                        "(default: 1024 for photos of more than 4 million pixels)")  # fmt: skip
    parser.add_argument("--scales", nargs="+", type=float, help="sizes to average over (default: the recipe's)")
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--flip", action=flag, default=None, help="average with the mirrored photo")
    parser.add_argument("--crf", action=flag, default=None, help="dense CRF on the result")
    parser.add_argument("--overlays", action=flag, default=True, help="write pictures of the masks over the photos")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--force", action="store_true", help="replace the predictions of another model in --output")
    parser.set_defaults(recipe=None, overlay=[], swap=[], drop=[], set=[], download=False)
    return parser
