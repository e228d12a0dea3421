"""A small PSPNet after some training, and its exports, which are shared: recording takes seconds."""

from __future__ import annotations

import pytest
import torch
from exported import CLASSES, PALETTE, Exported, small_pair
from network_pairs import make_pair

from pspnet_fast import PSPNet, export_onnx


@pytest.fixture(scope="session")
def model() -> PSPNet:
    return small_pair()[0]


@pytest.fixture(scope="session")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Logits of any number of images of any size, of a whole network."""
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    torch.manual_seed(0)
    model = make_pair(torch.float32)[0].eval()
    file = tmp_path_factory.mktemp("any") / "logits.onnx"
    return Exported(model, file, export_onnx(model, file, labels=False))


@pytest.fixture(scope="session")
def one_size(model: PSPNet, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Labels of one picture as it was decoded, with everything that is known of it."""
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    file = tmp_path_factory.mktemp("one") / "labels.onnx"
    options = {"batch": 1, "normalize": True, "classes": CLASSES, "palette": PALETTE}
    return Exported(model, file, export_onnx(model, file, (74, 90), **options))
