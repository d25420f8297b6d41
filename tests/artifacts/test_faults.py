"""Faults that need a second process: kills at every step of a run, two writers, and what an import loads."""

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.errors import LockError

IDS = ("a", "b", "sub/c", "d")
KIND = ("mask", "train")

COMMON = """
import os, signal, sys, time
import numpy as np
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore

IDS = ("a", "b", "sub/c", "d")
PALETTE = np.zeros((256, 3), np.uint8)

def identity(tau):
    return Manifest.create("mask", "tiny", "train", ids=IDS, settings={"tau": tau})

def mask(image_id, tau):
    seed = int(tau * 100) + IDS.index(image_id)
    return np.random.default_rng(seed).integers(0, 21, (60, 80), dtype=np.uint8)

def make(root, tau, pause=0.0):
    store = ArtifactStore(root, "tiny")
    with store.open_writer("mask", "train", identity=identity(tau), ids=IDS, palette=PALETTE) as writer:
        for image_id in writer.missing():
            writer.write(image_id, mask(image_id, tau))
            print(image_id, flush=True)
            time.sleep(pause)
        writer.seal()
"""

KILL_AT_EVERY_STEP = (
    COMMON
    + """
def arm(step):
    done = 0
    def wrap(name):
        original = getattr(os, name)
        def guarded(path, *arguments, **settings):
            nonlocal done
            if done == step:
                if name == "replace":
                    os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return original(path, *arguments, **settings)
        setattr(os, name, guarded)
    for name in ("replace", "unlink", "fsync"):
        wrap(name)

base, step = sys.argv[1], 0
make(f"{base}/old", 0.8)
while True:
    root = f"{base}/{step}"
    os.system(f"cp -r {base}/old {root}")
    child = os.fork()
    if child == 0:
        arm(step)
        make(root, 0.7)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    step += 1
make(f"{base}/new", 0.7)
print("steps", step, flush=True)
"""
)


def identity(tau: float) -> Manifest:
    return Manifest.create("mask", "tiny", "train", ids=IDS, settings={"tau": tau})


def content(root: Path) -> dict[str, bytes]:
    folder = ArtifactStore(root, "tiny").folder(*KIND)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def temporaries(root: Path) -> list[Path]:
    return list(root.rglob(".tmp-*"))


@pytest.fixture
def killed(tmp_path, start) -> int:
    """Replace an old artifact by a new one, killed before every change of the disk; a temporary file is cut in half."""
    output, _ = start(KILL_AT_EVERY_STEP, tmp_path).communicate(timeout=60)
    return int(output.split()[-1])


def test_kill_at_any_step_is_never_complete_and_resumes_to_the_same_result(tmp_path, killed):
    assert killed > 15
    old, new = content(tmp_path / "old"), content(tmp_path / "new")
    assert set(old) == set(new)
    assert all(old[name] != new[name] for name in old)
    seen_temporary = resumed = 0
    palette = np.zeros((256, 3), np.uint8)
    for step in range(killed):
        store = ArtifactStore(tmp_path / str(step), "tiny")
        now = content(store.root)
        assert set(now.items()) <= set(old.items()) | set(new.items()), "every visible file is whole"
        assert store.status(*KIND, expected=identity(0.8)).fresh <= (now == old)
        assert store.status(*KIND, expected=identity(0.7)).fresh <= (now == new)
        if store.manifest(*KIND) is not None:
            assert now in (old, new), "a manifest leaves before the first of its files and comes after the last"
        seen_temporary += bool(temporaries(store.root))
        with store.open_writer(*KIND, identity=identity(0.7), ids=IDS, palette=palette) as writer:
            kept = set(IDS) - set(writer.missing())
            resumed += bool(kept)
            assert all(now[f"{one}.png"] == new[f"{one}.png"] for one in kept), "only files of this identity are kept"
            for one in writer.missing():
                seed = 70 + IDS.index(one)
                writer.write(one, np.random.default_rng(seed).integers(0, 21, (60, 80), dtype=np.uint8))
            writer.seal()
        assert content(store.root) == new
        assert temporaries(store.root) == []
        assert store.status(*KIND, expected=identity(0.7)).fresh
    assert seen_temporary >= 5
    assert resumed >= 4


def test_kill_at_any_step_can_also_go_back_to_the_old_settings(tmp_path, killed):
    old = content(tmp_path / "old")
    kept_counts = set()
    for step in range(killed):
        store = ArtifactStore(tmp_path / str(step), "tiny")
        with store.open_writer(*KIND, identity=identity(0.8), ids=IDS, palette=np.zeros((256, 3), np.uint8)) as writer:
            now = content(store.root)
            assert set(now.items()) <= set(old.items()), "nothing of the new settings is taken for the old ones"
            assert set(writer.missing()) == {one for one in IDS if f"{one}.png" not in now}
            kept_counts.add(len(now))
    assert {0, 4} <= kept_counts


def test_kill_from_outside_then_run_again(tmp_path, start):
    first = start(COMMON + "make(sys.argv[1], 0.7, pause=0.2)", tmp_path / "run")
    assert [first.stdout.readline().strip() for _ in range(2)] == ["a", "b"]
    first.send_signal(signal.SIGKILL)
    assert first.wait(timeout=10) == -signal.SIGKILL
    store = ArtifactStore(tmp_path / "run", "tiny")
    status = store.status(*KIND, expected=identity(0.7))
    assert status.state == "partial"
    assert all(read_mask(path).shape == (60, 80) for path in store.folder(*KIND).rglob("*.png"))
    second, _ = start(COMMON + "make(sys.argv[1], 0.7)", tmp_path / "run").communicate(timeout=30)
    assert second.split() == ["sub/c", "d"]
    start(COMMON + "make(sys.argv[1], 0.7)", tmp_path / "straight").communicate(timeout=30)
    assert content(tmp_path / "run") == content(tmp_path / "straight")
    assert store.status(*KIND, expected=identity(0.7)).fresh


HOLD = (
    COMMON
    + """
store = ArtifactStore(sys.argv[1], "tiny")
with store.open_writer("mask", "train", identity=identity(0.7), ids=IDS, palette=PALETTE) as writer:
    writer.write("a", mask("a", 0.7))
    print("open", flush=True)
    sys.stdin.read()
"""
)


def test_second_process_is_told_who_writes_and_a_kill_frees_the_folder(tmp_path, start):
    holder = start(HOLD, tmp_path)
    assert holder.stdout.readline() == "open\n"
    store, palette = ArtifactStore(tmp_path, "tiny"), np.zeros((256, 3), np.uint8)
    with (
        pytest.raises(LockError) as caught,
        store.open_writer(*KIND, identity=identity(0.5), ids=IDS, palette=palette),
    ):
        pass
    message = str(caught.value)
    assert f"{store.folder(*KIND)} is being written by process {holder.pid} on host {socket.gethostname()}" in message
    assert "leave the lock file alone" in message
    assert store.path(*KIND, "a").exists()
    other = Manifest.create("mask", "tiny", "val", ids=IDS, settings={})
    with store.open_writer("mask", "val", identity=other, ids=IDS, palette=palette):
        pass
    holder.kill()
    holder.wait(timeout=10)
    with store.open_writer(*KIND, identity=identity(0.7), ids=IDS, palette=palette) as writer:
        assert writer.done("a")


def test_of_three_processes_started_together_one_writes_and_two_are_refused(tmp_path, start):
    script = COMMON + (
        "from dhr_lightning.errors import LockError\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try: make(sys.argv[1], 0.7, pause=0.25)\n"
        "except LockError: sys.exit(3)\n"
    )
    children = [start(script, tmp_path) for _ in range(3)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 3
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    codes = [child.wait(timeout=30) for child in children]
    assert sorted(codes) == [0, 3, 3]
    assert ArtifactStore(tmp_path, "tiny").status(*KIND, expected=identity(0.7)).fresh
    assert len(content(tmp_path)) == 4


def test_import_loads_neither_torch_nor_lightning(start):
    script = "import sys, dhr_lightning.artifacts.store\nprint(*{name.split('.')[0] for name in sys.modules})"
    loaded, _ = start(script).communicate(timeout=30)
    assert {"numpy", "PIL"} <= set(loaded.split())
    assert not {"torch", "lightning", "torchmetrics", "torchvision", "scipy"} & set(loaded.split())


@pytest.mark.skipif(not Path("/dev/shm").is_dir() or sys.platform != "linux", reason="needs a second file system")
def test_temporary_folder_on_another_file_system_does_not_matter(tmp_path, start, monkeypatch):
    place = Path("/dev/shm") / f"dhr-lightning-{os.getpid()}"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    try:
        child = start(COMMON + "make(sys.argv[1], 0.7)", tmp_path)
        child.communicate(timeout=30)
        assert child.returncode == 0
        assert list(place.iterdir()) == []
    finally:
        shutil.rmtree(place)
