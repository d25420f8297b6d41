"""What a workspace remembers of the recipes that ran in it: which artifacts and runs each of them needs."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dhr_lightning.artifacts.files import read_json, write_json
from dhr_lightning.artifacts.layout import MANIFEST, files_below
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.errors import ArtifactError
from dhr_lightning.pipeline.plan import RecipePlan
from dhr_lightning.provenance.views import DataView

RECIPES = "recipes"
_OLD_KINDS = ("cam", "base_mask", "uss", "wss_mask", "mars_mask", "prediction", "prediction_base")


def folder_of(store: ArtifactStore) -> Path:
    """Folder of the recipes that ran on a dataset."""
    return store.root / store.dataset / RECIPES


def remember(plan: RecipePlan) -> None:
    """Keep what a recipe is made of, under its name: `status`, `report` and `gc` read it."""
    store = plan.view.store
    content = {
        "recipe": plan.recipe.name,
        "command": plan.request.words(),
        "steps": {
            step.name: {
                "use": step.step.use,
                "outputs": [f"{address}/{split}" for address, split in step.outputs()],
                "run": step.identity.run if step.identity and step.identity.spec.fits else None,
            }
            for step in plan.steps
        },
    }
    path = folder_of(store) / f"{re.sub(r'[^A-Za-z0-9_.+=-]', '_', plan.recipe.name)}.json"
    if not path.is_file() or read_json(path) != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)


def remembered(store: ArtifactStore) -> list[dict[str, Any]]:
    """Recipes that ran on a dataset, by name."""
    return sorted((read_json(path) for path in folder_of(store).glob("*.json")), key=lambda one: str(one["recipe"]))


def forget_recipe(store: ArtifactStore, name: str) -> bool:
    """Let `gc` remove what only this recipe needs; returns whether it was known."""
    for path in folder_of(store).glob("*.json"):
        if read_json(path)["recipe"] == name:
            path.unlink()
            return True
    return False


class Garbage(NamedTuple):
    """A folder that no recipe needs."""

    folder: Path
    size: int


def garbage(view: DataView) -> list[Garbage]:
    """Folders of artifacts and runs that no remembered recipe needs; imported artifacts are never among them."""
    store = view.store
    recipes = remembered(store)
    outputs = {output for one in recipes for step in one["steps"].values() for output in step["outputs"]}
    runs = {step["run"] for one in recipes for step in one["steps"].values() if step["run"]}
    found = [
        store.folder(address, split)
        for address, split in store.addresses()
        if f"{address}/{split}" not in outputs and not address.startswith("imported/")
    ]
    base = view.workspace / "runs" / store.dataset
    found += [folder for folder in sorted(base.glob("*/*")) if folder.relative_to(base).as_posix() not in runs]
    return [Garbage(folder, sum(path.stat().st_size for path in files_below(folder))) for folder in found]


def remove(items: list[Garbage], *, below: Path) -> None:
    """Delete folders, and the folders around them that are empty then, up to `below`."""
    for item in items:
        shutil.rmtree(item.folder)
        for parent in _parents(item.folder, below):
            if any(parent.iterdir()):
                break
            parent.rmdir()


def _parents(folder: Path, below: Path) -> Iterator[Path]:
    for parent in folder.parents:
        if parent == below or below not in parent.parents:
            return
        yield parent


def refuse_old_workspace(view: DataView) -> None:
    """Raise if a workspace holds artifacts of the layout before recipes: they would never be found.

    Raises:
        ArtifactError: says what to do.
    """
    base = view.store.root / view.store.dataset
    for kind in _OLD_KINDS:
        for split in ("train", "val", "test"):
            if (base / kind / split / MANIFEST).is_file():
                raise ArtifactError(
                    f"{base} was written by a version without recipes ({kind}/{split}), which this one cannot read. "
                    "Move the folders artifacts/ and runs/ away, or choose another place with --workspace DIR."
                )
