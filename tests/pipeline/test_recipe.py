"""Recipes as files: what is read, swapped and dropped, and what is refused before any work."""

from pathlib import Path

import pytest

from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.recipe import Recipe, load_recipe, shipped_recipes

STEPS = """
steps:
  cam: {use: cam}
  propagation: {use: crf, reads: {cam: cam}}
  uss: {use: patches}
  mars: {use: mars, reads: {masks: propagation, features: uss}}
  baseline: {use: wss, reads: {masks: mars, init: cam}}
"""


def write(folder: Path, text: str, name: str = "mine.yaml", schema: str = "schema: 1\n") -> Path:
    path = folder / name
    path.write_text(schema + text)
    return path


def load(folder: Path, text: str) -> Recipe:
    recipe = load_recipe(write(folder, text))
    recipe.ordered()
    return recipe


def names(recipe: Recipe) -> list[str]:
    return [step.name for step in recipe.ordered()]


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_calls_its_steps_alike(name: str):
    recipe = load_recipe(name)
    assert recipe.about
    assert set(names(recipe)) == set(recipe.steps) <= {
        "cam", "propagation", "uss", "baseline", "mars", "dhr", "segmenter", "segmenter_crf"
    }  # fmt: skip


def test_steps_come_after_what_they_read_and_only_ancestors_of_outputs_run(tmp_path: Path):
    text = STEPS + "  spare: {use: wss, reads: {masks: propagation}}\noutputs: [mars]\n"
    assert names(load(tmp_path, text)) == ["cam", "propagation", "uss", "mars"]


def test_without_outputs_every_step_that_nothing_reads_is_one(tmp_path: Path):
    recipe = load(tmp_path, STEPS + "  spare: {use: wss, reads: {masks: propagation}}\n")
    assert recipe.outputs == ("baseline", "spare")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "steps: {a: {use: mars, reads: {masks: b, features: c}}, b: {use: mars, reads: {masks: a, features: c}}, "
            "c: {use: patches}}\noutputs: [a]\n",
            "form a cycle: a -> b -> a",
        ),
        ("steps: {cam: {use: camm}}\n", "Unknown method 'camm'. Did you mean cam or advcam?"),
        (
            STEPS + "outputs: [basline]\n",
            "outputs of recipe mine reads 'basline', which is no step. Did you mean baseline?",
        ),
        (
            "steps: {p: {use: crf, reads: {cam: camm}}, cam: {use: cam}}\noutputs: [p]\n",
            "p of recipe mine reads 'camm'",
        ),
        (
            "steps: {cam: {use: cam}, p: {use: crf}}\n",
            "p (crf) reads cam (cam), but the recipe does not say from which step",
        ),
        ("steps: {cam: {use: cam}, p: {use: crf, reads: {cams: cam}}}\n", "p has no input 'cams'. Did you mean cam?"),
        (
            "steps: {u: {use: patches}, p: {use: crf, reads: {cam: u}}}\n",
            "p.cam reads cam from u, but patches writes features",
        ),
        (
            "steps: {cam: {use: cam}, p: {use: crf, reads: {cam: cam.mask}}}\n",
            "p.cam reads cam from cam.mask, but cam writes cam",
        ),
        (
            "steps: {cam: {use: cam}, p: {use: crf, reads: {cam: cam}}, b: {use: wss, reads: {masks: p, init: p}}}\n",
            "b.init reads the weights of p, but crf has none",
        ),
        (
            "steps: {p: {use: crf, reads: {cam: truth}}}\n",
            "p cannot read the ground truth as cam: it is for evaluation only",
        ),
        (STEPS + "outptus: [cam]\n", "Unknown key 'outptus' in recipe"),
        ("steps: {cam: {use: cam, sets: {lr: 1}}}\n", "Unknown key 'sets' in step 'cam'"),
        ("steps: {cam: cam}\n", "needs `use: METHOD`, but got 'cam'"),
        ("steps: {data: {use: cam}}\n", "A step cannot be called 'data'"),
        ("steps: {a.b: {use: cam}}\n", "A step cannot be called 'a.b'"),
        ("per_method: {crff: {workers: 1}}\nsteps: {cam: {use: cam}}\n", "Unknown method 'crff' in per_method"),
        ("steps: {}\n", "has no steps"),
        ("steps: {b: {use: wss, reads: {masks: m, masks: p}}}\n", "has the key 'masks' again in line 2"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_with_the_reason(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)


@pytest.mark.parametrize("schema", ["", "schema: 2\n", "schema: one\n"])
def test_another_schema_is_refused(tmp_path: Path, schema: str):
    with pytest.raises(ConfigError, match=r"mine\.yaml has schema .*, but this version reads recipes of schema 1"):
        load_recipe(write(tmp_path, STEPS, schema=schema))


def test_recipes_that_extend_each_other_in_a_circle_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    with pytest.raises(ConfigError, match=r"circle: a\.yaml -> b\.yaml -> a\.yaml"):
        load_recipe("a.yaml")


def test_an_unknown_recipe_shows_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown recipe 'quikstart'"):
        load_recipe("quikstart")


def test_an_extension_changes_takes_out_and_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, STEPS + "set: {trainer: {max_epochs: 1}}\n", "base.yaml")
    write(tmp_path, "extends: base.yaml\nsteps: {mars: null, baseline: {reads: {masks: propagation, init: null}}}\n")
    recipe = load_recipe("mine.yaml")
    assert names(recipe) == ["uss", "cam", "propagation", "baseline"]
    assert recipe.steps["baseline"].reads == {"masks": "propagation"}
    assert recipe.layers == ({"trainer": {"max_epochs": 1}},)
    assert recipe.name == "mine"


def test_a_swap_keeps_what_the_new_method_can_read(tmp_path: Path):
    recipe = load(
        tmp_path, STEPS.replace("{use: crf, reads: {cam: cam}}", "{use: crf, reads: {cam: cam}, set: {crf: {}}}")
    )
    swapped = recipe.swap("propagation", "pamr")
    assert swapped.steps["propagation"].use == "pamr"
    assert swapped.steps["propagation"].reads == {"cam": "cam"}
    assert swapped.steps["propagation"].settings == {}  # they were meant for the other method
    assert names(swapped) == names(recipe)
    assert swapped.name == "mine+propagation=pamr"
    assert recipe.steps["propagation"].use == "crf"
    assert names(recipe.swap("propagation", "imported/theirs")) == ["propagation", "uss", "mars", "cam", "baseline"]


@pytest.mark.parametrize(
    ("step", "method", "message"),
    [
        (
            "propagatoin",
            "pamr",
            "--swap names the step 'propagatoin', which recipe mine lacks. Did you mean propagation?",
        ),
        ("propagation", "pamrr", "Unknown method 'pamrr'. Did you mean pamr?"),
        ("propagation", "patches", "mars.masks reads mask or label from propagation, but patches writes features"),
        ("uss", "mars", "uss (mars) reads masks"),
    ],
)
def test_a_swap_that_does_not_fit_is_refused(tmp_path: Path, step: str, method: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, STEPS).swap(step, method).ordered()
    assert message in str(caught.value)


def test_what_a_dropped_step_started_from_stands_in_for_it(tmp_path: Path):
    recipe = load(tmp_path, STEPS).drop("mars")
    assert recipe.steps["baseline"].reads == {"masks": "propagation", "init": "cam"}
    assert names(recipe) == ["cam", "propagation", "baseline"]
    assert recipe.name == "mine-mars"


def test_an_optional_input_needs_nothing_in_its_place():
    recipe = load_recipe("no_background").drop("uss")
    assert "features" not in recipe.steps["dhr"].reads
    assert "uss" not in names(recipe)


def test_dropping_an_output_leaves_the_others():
    assert load_recipe("dhr").drop("dhr").outputs == ("baseline",)
    assert load_recipe("base").drop("baseline").outputs == ("propagation", "cam")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("propagation", "'propagation' cannot be dropped: mars reads its masks, and nothing stands in for it"),
        ("uss", "'uss' cannot be dropped: mars reads its features"),
        ("cmm", "--drop names the step 'cmm', which recipe mine lacks. Did you mean cam?"),
    ],
)
def test_a_step_that_nothing_stands_in_for_cannot_be_dropped(tmp_path: Path, step: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, STEPS).drop(step)
    assert message in str(caught.value)
