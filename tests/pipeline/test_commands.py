"""`run`, `status`, `gc` and `report` about recipes: what they say, run, list and remove."""

import io
import json
import shutil
from pathlib import Path

import pytest

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import write_json
from tests.pipeline_workspace import RECIPE, Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]
PAMR = ["--swap", "propagation=pamr"]
NAME = "dhr+uss=patches"


def table(lines: Lines) -> dict[str, list[str]]:
    """Cells after the name of the step."""
    rows = [line.split() for line in lines.messages if line.startswith("  ") and ": " not in line]
    return {row[0]: row[1:] for row in rows}


def test_dry_shows_every_step_with_its_state_inputs_and_seconds(workspace: Workspace, no_lightning: None, lines: Lines):
    assert workspace.run(options=["--dry"]) == 0
    rows = table(lines)
    assert list(rows) == ["step", "cam", "propagation", "baseline", "uss", "mars", "dhr"]
    assert {row[1] for name, row in rows.items() if name != "step"} == {"fresh"}
    assert rows["propagation"][:5] == ["crf", "fresh", "cam", "<-", "cam"]
    assert rows["mars"][2:8] == ["masks", "<-", "propagation,", "features", "<-", "uss"]
    assert all(row[-1] == "s" for name, row in rows.items() if name not in ("step",))  # "3 s"


def test_dry_says_what_changed_and_what_follows(workspace: Workspace, no_lightning: None, lines: Lines):
    assert workspace.run("--propagation.background=0.4", options=["--dry"]) == 0
    rows = table(lines)
    assert {name: row[1] for name, row in rows.items() if name != "step"} == {
        "cam": "fresh", "propagation": "stale", "baseline": "stale", "uss": "fresh", "mars": "stale", "dhr": "stale"
    }  # fmt: skip
    (reason,) = (line for line in lines.messages if line.startswith("  propagation: "))
    assert reason.endswith("-> 0.4")
    assert "prediction.background" in reason
    assert "  dhr: what it reads is made in another way" in lines.messages


def test_dry_touches_nothing(empty_workspace: Workspace, no_lightning: None, lines: Lines):
    assert empty_workspace.run(options=["--dry"]) == 0
    assert {row[1] for name, row in table(lines).items() if name != "step"} == {"absent"}
    assert main(["run", "--root", "nowhere", "--dry"]) == 0
    assert list(empty_workspace.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "package", "extra"),
    [
        ("dhr.rebalance.transport", "pot", "POT", "pot"),
        ("mars.refine", "pydensecrf", "pydensecrf", "crf"),
        ("dhr.test_crf.backend", "pydensecrf", "pydensecrf", "crf"),
        ("baseline.decoder", "mask2former", "transformers", "mask2former"),
    ],
)
def test_a_step_that_needs_an_absent_package_is_refused_before_the_steps_ahead_of_it(
    empty_workspace: Workspace, no_lightning: None, lines: Lines, monkeypatch: pytest.MonkeyPatch,
    option: str, value: str, package: str, extra: str,
):  # fmt: skip
    monkeypatch.setattr("dhr_lightning.ops.transport.pot.find_spec", lambda name: None)
    monkeypatch.setattr("dhr_lightning.models.mask2former.find_spec", lambda name: None)
    monkeypatch.setattr("dhr_lightning.ops.crf.dense.has_pydensecrf", lambda: False)
    assert empty_workspace.run(f"--{option}", value) == 2
    (message,) = lines.messages
    assert message.startswith(f"error: {package} is not installed, but `{option}` is '{value}'. Run `pip install")
    assert f"'dhr-lightning[{extra}]'" in message
    assert list(empty_workspace.folder.iterdir()) == []


@pytest.mark.parametrize("options", [[], ["--dry"]])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--dhr.weight_cl", "dhr: DHRTask has no argument 'weight_cl' (model.init_args). Did you mean weight_cls"),
        ("--mars.refin", "mars: MARSTask has no argument 'refin' (model.init_args). Did you mean refine"),
        ("--data.crop_siz", "cam: WSSSDataModule has no argument 'crop_siz' (data). Did you mean crop_size?"),
        ("--uss.trainer.max_epoch", "uss: Trainer has no argument 'max_epoch' (trainer). Did you mean max_epochs"),
    ],
)
def test_an_argument_that_does_not_exist_is_refused_before_any_work(
    empty_workspace: Workspace, no_lightning: None, lines: Lines, options: list[str], override: str, message: str
):
    assert empty_workspace.run(override, "1", options=options) == 2
    (found,) = lines.messages
    assert found.startswith(f"error: {message}")
    assert list(empty_workspace.folder.iterdir()) == []


def test_until_runs_a_step_and_what_it_needs(workspace: Workspace, ran: list[str], lines: Lines):
    assert workspace.run("--uss.scales=[0.5]", options=["--until", "mars"]) == 0
    assert ran == ["predict uss", "fit mars", "predict mars"]
    assert workspace.run(options=["--until", "marz"]) == 2
    assert lines.messages[-1] == "error: --until names the step 'marz'. Did you mean mars?"
    assert workspace.run(options=["--force", "camm"]) == 2
    assert lines.messages[-1] == "error: --force names the step 'camm'. Did you mean cam?"


def test_set_and_overrides_say_the_same(workspace: Workspace):
    places = workspace.places("--dhr.lr=0.5", "--data.flip=0.1")
    assert workspace.places(options=["--set", "dhr.lr=0.5", "data.flip=0.1"]) == places
    assert workspace.places(options=["--set", "dhr.lr=0.5", "--set", "data.flip=0.1"]) == places
    assert places != workspace.places()
    assert workspace.run(options=["--set", "dhr.lr"]) == 2


def test_status_tells_fresh_stale_partial_and_absent_apart(workspace: Workspace, lines: Lines):
    def rows() -> dict[str, str]:
        lines.clear()
        status = main(["status", "--root", str(workspace.data)])
        found = {line.split()[1]: line.split(maxsplit=2)[2] for line in lines.messages if line.startswith("  ")}
        assert lines.messages[0] == f"recipe {NAME} on microworld"
        assert status == int(any(text.startswith(("stale", "partial")) for text in found.values()))
        return found

    where = {name: "/".join(place) for name, place in workspace.places().items()}
    assert set(rows()) == set(where.values())
    assert all(text.startswith("fresh  ") for text in rows().values())
    assert "12 images" in rows()[where["propagation/train"]]

    workspace.path("baseline/train", "train_0007").unlink()
    found = rows()
    assert found[where["baseline/train"]].startswith("partial (1 of 12 files are missing")
    assert "'train_0007'" in found[where["baseline/train"]]
    assert "  run `python -m dhr_lightning run dhr " in lines.text
    workspace.store.forget(*workspace.place("uss/train"))
    found = rows()
    assert found[where["uss/train"]].startswith(("absent", "partial"))
    assert found[where["dhr/round_01/train"]].startswith(f"stale (input {where['uss/train']} ")
    assert "-> absent)" in found[where["dhr/round_01/train"]]


def test_status_of_an_empty_workspace_says_what_to_run(empty_workspace: Workspace, lines: Lines):
    assert main(["status", "quickstart", "--root", str(empty_workspace.data), "--overlay", "debug.yaml"]) == 0
    assert any(line.startswith("  cam ") and "absent (nothing in" in line for line in lines.messages)
    command = f"python -m dhr_lightning run quickstart --root {empty_workspace.data} --overlay debug.yaml"
    assert lines.messages[-1] == f"  run `{command}`"
    assert main(["run", *command.split()[4:], "--dry"]) == 0


def test_status_lists_every_recipe_that_ran(workspace: Workspace, lines: Lines, ran: list[str]):
    assert workspace.run(options=[*PAMR, "--until", "propagation"]) == 0
    lines.clear()
    assert main(["status", "--root", str(workspace.data)]) == 0
    named = [line for line in lines.messages if line.startswith("recipe ")]
    assert named == [f"recipe {NAME} on microworld", f"recipe {NAME}+propagation=pamr on microworld"]


def test_gc_keeps_what_recipes_need_and_removes_the_rest(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    place = ["--root", str(workspace.data)]
    assert main(["gc", *place]) == 0
    assert lines.messages == ["nothing to remove"]
    assert workspace.run(options=[*PAMR, "--until", "propagation"]) == 0
    extra = workspace.places(options=PAMR)["propagation/train"]
    lines.clear()
    assert main(["gc", *place]) == 0
    assert lines.messages == ["nothing to remove"]

    lines.clear()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # nobody answers
    assert main(["gc", *place, "--forget", f"{NAME}+propagation=pamr"]) == 1
    assert lines.messages[-1] == "nothing removed; --yes removes without asking"
    assert any(line.endswith(f"{extra[0]}/train") and "B  " in line for line in lines.messages)
    assert workspace.store.manifest(*extra) is not None

    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert main(["gc", *place]) == 0
    assert not workspace.store.folder(*extra).exists()
    assert not (workspace.folder / "artifacts" / "microworld" / "pamr").exists()
    lines.clear()
    assert workspace.run() == 0
    assert lines.messages == [f"run {NAME}: up to date"]


def test_gc_removes_runs_but_no_imports(workspace: Workspace, lines: Lines):
    shutil.copytree(workspace.artifact("propagation/train"), "theirs")
    assert main(["import", "mask", "theirs", "--root", str(workspace.data)]) == 0
    assert main(["gc", "--root", str(workspace.data), "--forget", NAME, "--yes"]) == 0
    assert [address for address, _ in workspace.store.addresses()] == ["imported/theirs/mask"]
    assert not list(Path("runs/microworld").glob("*"))


def test_an_old_workspace_is_refused_with_what_to_do(workspace: Workspace, lines: Lines, no_lightning: None):
    folder = workspace.folder / "artifacts" / "microworld" / "base_mask" / "train"
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {"schema": 1})
    for run in (workspace.run, lambda: main(["status", "--root", str(workspace.data)])):
        assert run() == 2
        assert "was written by a version without recipes (base_mask/train)" in lines.messages[-1]
        assert "--workspace DIR" in lines.messages[-1]


@pytest.mark.slow
def test_imported_masks_stand_in_for_a_step(workspace: Workspace, lines: Lines, ran: list[str]):
    shutil.copytree(workspace.artifact("propagation/train"), "theirs")
    swap = ["--swap", "propagation=imported/rsepm"]
    assert workspace.run(options=swap) == 2
    assert "nothing was imported under this name" in lines.messages[-1]
    assert "import KIND FOLDER --name rsepm" in lines.messages[-1]
    assert main(["import", "mask", "theirs", "--name", "rsepm", "--root", str(workspace.data)]) == 0
    assert workspace.run(options=[*swap, "--until", "baseline"]) == 0
    assert ran == ["fit baseline", "predict baseline"]
    baseline = workspace.places(options=swap)["baseline/train"]
    assert "imported/rsepm/mask/train" in workspace.store.manifest(*baseline).inputs


def test_recipes_are_reported_by_the_names_that_status_shows(workspace: Workspace):
    place = ["--root", str(workspace.data), "--output", "one", "--images", "1"]
    assert main(["report", NAME, *place]) == 0
    assert "dhr/train" not in json.loads(Path("one/report.json").read_text())["metrics"]
    assert "dhr/round_01/train" in json.loads(Path("one/report.json").read_text())["metrics"]


def test_several_recipes_stand_side_by_side_in_one_report(workspace: Workspace, ran: list[str]):
    assert workspace.run(options=[*PAMR, "--until", "propagation"]) == 0
    assert workspace.command("report", "--output", "both", "--images", "1", f"{NAME}+propagation=pamr") == 0
    result = json.loads(Path("both/report.json").read_text())
    names = list(result["metrics"])
    assert names.count("cam/train") == 1  # what both have in common stands once, under its plain name
    assert not any(name.endswith(" cam/train") for name in names)
    assert len([name for name in names if name.endswith(" propagation/train")]) == 2


def test_messages_name_the_whole_command(workspace: Workspace, no_lightning: None, lines: Lines):
    mask = next(path for path in sorted(workspace.store.root.rglob("mask/train/*.png")) if "crf" in str(path))
    mask.write_bytes(b"\x89PNG broken")
    command = f"python -m dhr_lightning run dhr --root {workspace.data} --overlay debug.yaml --swap uss=patches"
    for words in (["status"], ["report"]):
        lines.clear()
        main([*words, *RECIPE, "--root", str(workspace.data), *(["--verify"] if words == ["status"] else [])])
        assert f"Delete the file and run `{command}`" in lines.text
    lines.clear()
    assert main(["evaluate", "--pred", str(mask.parent), "--split", "train", "--root", str(workspace.data)]) == 2
    assert "and run `python -m dhr_lightning run`" in lines.text  # no recipe is known there


def test_output_in_a_folder_that_does_not_exist_is_made(workspace: Workspace, no_lightning: None, lines: Lines):
    folder = next(path.parent for path in sorted(workspace.store.root.rglob("prediction/val/manifest.json")))
    arguments = ["--root", str(workspace.data), "--json", "new/folder/scores.json"]
    assert main(["evaluate", "--pred", str(folder.relative_to(workspace.folder)), "--workspace", ".", *arguments]) == 0
    assert json.loads((workspace.folder / "new/folder/scores.json").read_text())["images"] == 4
