import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dhr_lightning.config import apply_overrides, find_config, in_sections, merge, read_yaml, resolve, split_options
from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.plan import RecipePlan, _by_step, make_plan
from dhr_lightning.pipeline.request import Request
from dhr_lightning.steps import methods

CONFIGS = Path(__file__).parents[1] / "configs"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def keys_of(node: Any) -> set[str]:
    if isinstance(node, dict):
        return set(node) | {key for value in node.values() for key in keys_of(value)}
    return {key for value in node for key in keys_of(value)} if isinstance(node, list) else set()


def test_merge_is_deep_and_the_top_wins():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}, "d": {"e": 2}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert merge(base, {"a": None}) == {"a": None, "d": 1}


def test_merge_leaves_its_inputs_alone():
    base, top = {"a": {"b": [1]}}, {"a": {"b+": [2], "c": {"d": []}}}
    before = copy.deepcopy((base, top))
    merged = merge(base, top)
    merged["a"]["b"].append(9)
    merged["a"]["c"]["d"].append(9)
    assert (base, top) == before


@pytest.mark.parametrize("base", [{}, {"trainer": None}, {"trainer": {}}, {"trainer": {"callbacks": None}}])
def test_append_works_where_there_is_nothing_to_append_to(base: dict[str, Any]):
    assert merge(base, {"trainer": {"callbacks+": [1]}}) == {"trainer": {"callbacks": [1]}}


def test_append_keeps_the_order():
    assert merge({"a": [1, 2]}, {"a+": [3, 4]}) == {"a": [1, 2, 3, 4]}


def test_another_class_path_drops_the_arguments_of_the_class_it_replaces():
    base = {"model": {"class_path": "CAMTask", "init_args": {"scales": [1.0], "lr": 1}}}
    assert merge(base, {"model": {"class_path": "CAMTask", "init_args": {"lr": 2}}})["model"]["init_args"] == {
        "scales": [1.0],
        "lr": 2,
    }
    assert merge(base, {"model": {"class_path": "WSSTask", "init_args": {"lr": 2}}})["model"]["init_args"] == {"lr": 2}


def test_files_merge_from_left_to_right(tmp_path: Path):
    first = write(tmp_path, "a.yaml", "model: {class_path: CAMTask}\ndata: {batch_size: 1, seed: 3}\n")
    second = write(tmp_path, "b.yaml", "data: {batch_size: 2}\n")
    assert resolve([first, second])["data"] == {"batch_size": 2, "seed": 3}
    assert resolve([second, first])["data"] == {"batch_size": 1, "seed": 3}


def test_only_the_part_of_the_method_counts_and_it_comes_after_what_holds_for_all(tmp_path: Path):
    text = "data: {batch_size: 3}\nper_method: {cam: {data: {batch_size: 4}}, wss: {data: {batch_size: 5}}}\n"
    overlay = write(tmp_path, "o.yaml", text)
    config = resolve(["methods/wss.yaml", overlay])
    assert config["data"]["batch_size"] == 5
    assert "per_method" not in config
    assert resolve(["methods/wss.yaml", overlay], ["--data.batch_size", "6"])["data"]["batch_size"] == 6
    assert resolve([overlay])["data"]["batch_size"] == 3
    assert resolve([overlay], method="cam")["data"]["batch_size"] == 4


def test_parts_of_a_dataset_and_of_a_method_meet(tmp_path: Path):
    text = "per_dataset: {voc: {data: {seed: 7}}, coco: {data: {seed: 8}}}\nper_method: {cam: {lr: 0.5}}\n"
    overlay = write(tmp_path, "o.yaml", text)
    config = resolve(["methods/cam.yaml", "data/voc.yaml", overlay])
    assert (config["data"]["seed"], config["model"]["init_args"]["lr"]) == (7, 0.5)


def test_parts_of_several_files_are_merged_one_after_the_other(tmp_path: Path):
    base = write(tmp_path, "t.yaml", "data: {method: cam}\ntrainer: {callbacks: [a]}\n")
    first = write(tmp_path, "a.yaml", "per_method: {cam: {trainer: {callbacks+: [b], max_epochs: 1}}}\n")
    second = write(tmp_path, "b.yaml", "per_method: {cam: {trainer: {callbacks+: [c], max_epochs: 2}}}\n")
    assert resolve([base, first, second])["trainer"] == {"callbacks": ["a", "b", "c"], "max_epochs": 2}


def test_what_is_in_no_section_is_an_argument_of_the_task():
    assert in_sections({"lr": 0.1, "data": {"batch_size": 4}}) == {
        "model": {"init_args": {"lr": 0.1}},
        "data": {"batch_size": 4},
    }
    assert in_sections({"trainer": {"max_epochs": 1}}) == {"trainer": {"max_epochs": 1}}


def test_empty_sections_and_files_change_nothing(tmp_path: Path):
    base = write(tmp_path, "t.yaml", "data: {method: cam}\n")
    empty = write(tmp_path, "e.yaml", "# nothing\n")
    hollow = write(tmp_path, "h.yaml", "per_method:\n")
    assert resolve([base, empty, hollow]) == {"data": {"method": "cam"}}
    assert resolve([]) == {}


def test_the_file_of_a_method_says_whose_it_is():
    for name, method in methods().items():
        assert method.config is not None
        assert resolve([f"methods/{name}.yaml"])["data"]["method"] == name


def test_yaml_anchors_share_and_extend_a_mapping(tmp_path: Path):
    text = "base: &base {lr: 0.1, power: 0.9}\nmodel:\n  init_args:\n    <<: *base\n    lr: 0.2\n  crf: *base\n"
    config = resolve([write(tmp_path, "a.yaml", text)], ["--base.power", "0"])
    assert config["model"] == {"init_args": {"lr": 0.2, "power": 0.9}, "crf": {"lr": 0.1, "power": 0.9}}
    assert config["base"]["power"] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--a.b", "0.5"], {"a": {"b": 0.5}}),
        (["--a.b=true"], {"a": {"b": True}}),
        (["--a.b", "[1, 2]", "--c", "null"], {"a": {"b": [1, 2]}, "c": None}),
        (["--a.b=x=y"], {"a": {"b": "x=y"}}),
        (["--a.b", "-1"], {"a": {"b": -1}}),
        (["--a.b", "1", "--a.b", "2"], {"a": {"b": 2}}),
    ],
)
def test_overrides_become_plain_values(arguments: list[str], expected: dict[str, Any]):
    assert apply_overrides({}, arguments) == expected


def test_overrides_fill_an_empty_section_and_leave_the_configuration_alone():
    config: dict[str, Any] = {"model": {"init_args": None}, "data": {"seed": 0}}
    assert apply_overrides(config, ["--model.init_args.lr", "1", "--data.seed=2"]) == {
        "model": {"init_args": {"lr": 1}},
        "data": {"seed": 2},
    }
    assert config == {"model": {"init_args": None}, "data": {"seed": 0}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.b", "1"], "Expected an override like .*'a.b'"),
        (["--a.b"], r"--a\.b has no value"),
        (["--a.b", "--c", "1"], r"--a\.b has no value"),
        (["--seed.x", "1"], "'seed', which is not a section"),
        (["--a", "[1"], r"'\[1' of override --a is not valid YAML"),
    ],
)
def test_unusable_overrides_are_named(arguments: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"seed": 1}, arguments)


@pytest.mark.parametrize(
    "words",
    [
        ["--a.b", "1", "--c=2", "--flag", "--d", "-1", "bare", "--e=", "--f=x=y"],
        ["-c", "file", "--g", "", "alone"],
        ["--last"],
        [],
    ],
)
def test_a_command_line_is_split_without_loss(words: list[str]):
    options = list(split_options(words))
    assert [word for option in options for word in option.words] == words
    for option in options:
        joined = option.name if option.value is None else f"{option.name}={option.value}"
        assert joined in ("=".join(option.words), *option.words)


def test_the_value_is_the_rest_of_the_word_or_the_next_word():
    options = list(split_options(["--a.b=x=y", "--c", "-1", "--d", "--e", "--f=", "z"]))
    assert [(option.name, option.value) for option in options] == [
        ("--a.b", "x=y"),
        ("--c", "-1"),
        ("--d", None),
        ("--e", None),
        ("--f", ""),
        ("z", None),
    ]
    assert options[0].keys == ["a", "b"]


def test_a_step_gets_the_overrides_of_all_and_its_own_without_its_name():
    given = ["--cam.model.lr=1", "--data.seed", "2", "--dhr.lr", "3", "--cam.data.seed", "4", "--model.camera=5"]
    common, own = _by_step(given, ["cam", "dhr"])
    assert common == ["--data.seed", "2", "--model.camera=5"]
    assert own == {"cam": ["--model.lr=1", "--data.seed", "4"], "dhr": ["--model.init_args.lr", "3"]}


@pytest.mark.parametrize("given", [["--cam", "1"], ["--cam=1"], ["--came.lr", "1"]])
def test_a_step_alone_is_no_override_and_named(given: list[str]):
    with pytest.raises(ConfigError, match=r"Unknown section or step 'came?'.*cam"):
        _by_step(given, ["cam"])


def test_an_unknown_file_is_refused_with_the_names_that_exist():
    with pytest.raises(ConfigError, match=r"'stage9\.yaml'.*configs/debug\.yaml"):
        resolve(["stage9.yaml"])


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "not valid YAML"), ("- 1\n- 2\n", "Expected a mapping in .* but got list")]
)
def test_unreadable_files_are_named(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, "broken.yaml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_shipped_files_are_found_from_anywhere_and_own_files_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert find_config("debug.yaml") == find_config("configs/debug.yaml") == CONFIGS / "debug.yaml"
    assert find_config("data/voc.yaml") == CONFIGS / "data" / "voc.yaml"
    own = write(tmp_path, "debug.yaml", "")
    assert find_config("debug.yaml").resolve() == own


def plan_of(tmp_path: Path, recipe: str, *, overlays: tuple[str, ...] = ()) -> RecipePlan:
    return make_plan(Request(recipe, root=str(tmp_path), overlays=overlays))


@pytest.mark.parametrize("recipe", ["dhr", "quickstart", "photos", "mars", "supervised"])
def test_nothing_is_left_of_what_merging_needs(tmp_path: Path, recipe: str):
    for step in plan_of(tmp_path, recipe).steps:
        config = dict(step.identity.config)
        assert set(config) <= {"model", "data", "trainer", "seed_everything"}
        assert not {key for key in keys_of(config) if key.endswith("+") or key in ("per_method", "per_dataset", "<<")}


def test_cam_is_the_recipe_of_irnet():
    config = resolve(["methods/cam.yaml", "data/voc.yaml"])
    options, data = config["model"]["init_args"], config["data"]
    assert {name: options[name] for name in ("backbone", "output_stride", "dilation")} == {
        "backbone": "resnet50", "output_stride": 16, "dilation": False
    }  # fmt: skip
    assert (options["frozen_norm"], options["frozen_stages"]) == ("statistics", 2)
    published_rate = 0.1  # without momentum; 0.9 makes a step ten times as long
    assert options["lr"] / (1 - options["momentum"]) == pytest.approx(published_rate)
    assert (options["optimizer"], options["head_lr_factor"], options["weight_decay"]) == ("sgd", 10, 1e-4)
    assert (options["power"], options.get("warmup", 0)) == (0.9, 0)
    assert options["scales"] == [1.0, 0.5, 1.5, 2.0]
    assert (data["batch_size"], data["crop_size"], data["scale"], data["flip"]) == (16, 512, [320, 640], 0.5)
    assert (data["interpolation"], data["jitter"]) == ("bicubic", [0, 0, 0, 0])
    assert config["trainer"]["max_epochs"] == 5


@pytest.mark.parametrize(
    ("recipe", "overlays"), [("quickstart", ()), ("dhr", ("debug.yaml",)), ("photos", ())], ids=lambda one: str(one)
)
def test_no_small_recipe_inherits_the_frozen_parts_of_cam(tmp_path: Path, recipe: str, overlays: tuple[str, ...]):
    config = plan_of(tmp_path, recipe, overlays=overlays)["cam"].identity.config
    options, data = config["model"]["init_args"], config["data"]
    assert options["frozen_norm"] is (recipe == "photos")
    assert (options["frozen_stages"], options["dilation"], data["interpolation"]) == (0, True, "bilinear")
    assert any(data["jitter"])


def test_planning_does_not_import_torch(tmp_path: Path):
    code = (
        "import sys\nfrom dhr_lightning.pipeline.plan import make_plan\n"
        "from dhr_lightning.pipeline.request import Request\n"
        f"make_plan(Request('dhr', root={str(tmp_path)!r}))\n"
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_misspelt_method_of_an_overlay_fails_at_once(tmp_path: Path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("per_method:\n  camm: {trainer: {max_epochs: 1}}\n")
    with pytest.raises(ConfigError, match=r"Unknown method 'camm' .*overlay\.yaml.*Did you mean cam or advcam\?"):
        resolve([overlay])
    with pytest.raises(ConfigError, match="Unknown method 'camm'"):
        plan_of(tmp_path, "dhr", overlays=(str(overlay),))
