"""A finished run of the recipe on frozen features, which several tests load models of."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dhr_lightning.__main__ import main


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory, debug_data: Path) -> Path:
    """A working directory in which `frozen` has run on the built-in data in the size of `debug.yaml`."""
    folder = tmp_path_factory.mktemp("frozen")
    weights = folder / "test_vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), weights)
    words = ["run", "frozen", "--overlay", "debug.yaml", "--root", str(debug_data), "--workspace", str(folder)]
    assert main([*words, "--", "--uss.pretrained", str(weights)]) == 0
    return folder
