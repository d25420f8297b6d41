from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dhr_lightning.callbacks.writers import enter_together, refinement, to_arrays
from dhr_lightning.ops.crf import has_pydensecrf
from tests.task_samples import make_task


@pytest.mark.parametrize(
    ("kind", "tensors", "dtypes"),
    [
        ("cam", [torch.tensor([1, 7]), torch.rand(2, 3, 4)], ["int16", "float16"]),
        ("uss", [torch.rand(5, 3, 4)], ["float16"]),
        ("base_mask", [torch.tensor([[0, 255], [3, 1]])], ["uint8"]),
        ("dhr_mask/round_02", [torch.tensor([[0, 255], [3, 1]])], ["uint8"]),
    ],
)
def test_arrays_have_the_type_that_the_kind_stores(kind: str, tensors: list[torch.Tensor], dtypes: list[str]):
    arrays = to_arrays(kind, tensors)
    assert [array.dtype.name for array in arrays] == dtypes
    for array, tensor in zip(arrays, tensors, strict=True):
        assert np.allclose(array, tensor.numpy(), atol=1e-3)


@pytest.mark.parametrize(("first", "order"), [(True, ["open", "declared"]), (False, ["declared", "open"])])
def test_the_first_rank_opens_before_the_others(first: bool, order: list[str]):
    events: list[str] = []

    @contextmanager
    def writer() -> Any:
        events.append("open")
        yield "writer"
        events.append("closed")

    trainer = SimpleNamespace(is_global_zero=first, strategy=SimpleNamespace(barrier=events.append))
    opened = writer()
    with enter_together(trainer, opened) as entered:
        assert entered is opened
        assert events == order
    assert events == [*order, "closed"]


def test_the_refinement_that_really_ran_is_recorded():
    assert refinement(make_task("CAMTask", refine="pamr")) == "pamr"
    assert refinement(make_task("CAMTask")) == ("pydensecrf" if has_pydensecrf() else "lattice")
    assert refinement(make_task("DHRTask", refine="none")) == "none"
    assert refinement(make_task("WSSTask")) == "none"
