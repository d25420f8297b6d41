"""The command `weights`: what recipes start from, whose supervision and licence that is, and where the files lie."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from dhr_lightning.artifacts.files import write_bytes
from dhr_lightning.errors import ConfigError
from dhr_lightning.provenance.registered import FOLDER, KNOWN, TIMM, register, registered
from dhr_lightning.steps import did_you_mean

log = logging.getLogger("dhr_lightning")


def run_weights(arguments: Sequence[str]) -> int:
    """Parse the command line and list, fetch or register weights."""
    options = _parser().parse_args(arguments)
    workspace = Path(options.workspace)
    if options.action == "list":
        _show(workspace)
    elif options.action == "path":
        digest = register(workspace, options.name, Path(options.file))
        log.info("%s: %s, sha256 %s", options.name, options.file, digest)
        log.info("next: --weights %s", options.name)
    else:
        _fetch(workspace, options.name)
    return 0


def _show(workspace: Path) -> None:
    here = registered(workspace)
    for one in KNOWN:
        log.info("%s  (%s)", one.name, one.use)
        log.info("    %d MB, %s, licence: %s", one.megabytes, one.supervision, one.licence)
        log.info("    %s", f"here: {here[one.name]}" if one.name in here else f"from {one.source}")
    for name in sorted(set(here) - {one.name for one in KNOWN}):
        log.info("%s\n    here: %s", name, here[name])
    log.info("next: `weights fetch NAME`, or with a file `weights path NAME FILE`; then `run ... --weights NAME`")


def _fetch(workspace: Path, name: str) -> None:
    """Download by timm, and keep the file in `weights/`.

    Raises:
        ConfigError: if the name is no model of timm with weights.
        DependencyError: if the network does not give them; says which file goes where.
    """
    known = {one.name: one for one in KNOWN}
    if name in known and known[name].source != TIMM:
        raise ConfigError(
            f"{name} comes from {known[name].source}: `run ... --download` fetches it, or download it yourself and "
            f"`weights path {name} FILE`."
        )
    from safetensors.torch import save

    from dhr_lightning.models.taps import is_backbone
    from dhr_lightning.models.weights import create_timm

    if not is_backbone(name):
        raise ConfigError(f"timm has no weights called {name!r}. {did_you_mean(name, known)}")
    log.info("%s: %s", name, f"{known[name].supervision}, licence: {known[name].licence}" if name in known else "")
    network = create_timm(name, pretrained=True, kind="model of timm with weights", num_classes=0)
    target = workspace / FOLDER / f"{name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, save(network.state_dict()))  # whole or not at all
    log.info("%s, sha256 %s", target, register(workspace, name, target))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dhr_lightning weights",
        description="Pretrained weights: list what recipes start from, fetch some by name, or register a file that you "
        "have, so that `--weights NAME` finds it.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for action, about in (("list", "name, size, supervision, licence, and where it lies"),
                          ("fetch", "download by name into weights/"), ("path", "say where a file lies")):  # fmt: skip
        one = actions.add_parser(action, help=about, allow_abbrev=False)
        if action != "list":
            one.add_argument("name", metavar="NAME")
        if action == "path":
            one.add_argument("file", metavar="FILE")
        one.add_argument("--workspace", default=".", metavar="DIR", help="folder that holds weights/ (default: .)")
    return parser
