from __future__ import annotations

import pytest
import torch

from xray_pipeline.training.device import Precision, has_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize("wanted", ["auto", "float32"])
def test_a_cpu_computes_in_float32(wanted: str) -> None:
    precision = Precision(CPU, wanted)  # type: ignore[arg-type]
    with precision.cast():
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.float32
    assert not precision.scaler.is_enabled()


def test_bfloat16_only_where_the_cpu_has_it() -> None:
    with Precision(CPU, "bfloat16").cast():
        found = (torch.ones(4, 4) @ torch.ones(4, 4)).dtype
    assert found == (torch.bfloat16 if has_bfloat16() else torch.float32)


def test_float32_on_a_gpu_is_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert Precision(torch.device("cuda"), "float32").dtype is None
    assert not torch.backends.cudnn.allow_tf32
