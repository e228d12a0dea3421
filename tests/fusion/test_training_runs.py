"""The code of docs/accelerate.md, and training as the examples of transformers, torchvision and Lightning do it.

Twenty steps give the same losses with accelerate. The data are drawn scenes, and CamVid's images where
PSPNET_FAST_CAMVID names its folder.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from heads import Mixed, fused_operators
from models import LIBRARIES, require, torchvision_model
from torch.utils.data import DataLoader

import pspnet_fast

PAGE = Path(__file__).parents[2] / "docs" / "accelerate.md"
CAMVID = os.environ.get("PSPNET_FAST_CAMVID")
CLASSES, IGNORE, STEPS = 11, 255, 20
# Training from random weights makes a difference grow severalfold from step to step. In float32, losses differ by
# percents after 20 steps whenever anything is rounded in another way, be it the number of threads; in float64 by 1e-9.
DTYPE, TOLERANCE = torch.float64, 1e-6
BATCH = 4


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 6
    require(*LIBRARIES)
    names = {"output_dir": str(tmp_path)}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)


@pytest.fixture(params=["scenes", "camvid"])
def dataset(request):
    """Pairs of an image ``[3, n, n]`` and its int64 labels ``[n, n]``."""
    pytest.importorskip("torchvision")
    from pspnet_fast import data

    if request.param == "scenes":
        drawn, crop = [data.draw_scene(seed, (56, 64)) for seed in range(8)], 48
        pictures = [(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label)) for image, label in drawn]
    elif CAMVID is None:
        pytest.skip("PSPNET_FAST_CAMVID does not name the folder of CamVid")
    else:
        camvid, crop = data.open_dataset("camvid", CAMVID, "train"), 128
        pictures = [camvid.read(i) for i in range(40)]
    transform = data.train_transform(crop)
    torch.manual_seed(0)
    samples = [transform(image, label) for image, label in pictures]
    return [(image.to(DTYPE), label.long().masked_fill(label >= CLASSES, IGNORE)) for image, label in samples]


def assert_same_run(run, stock, rules):
    """``run(model)`` gives losses, then metrics: equal with and without accelerate, and the losses fall."""
    expected = run(copy.deepcopy(stock))
    model = pspnet_fast.accelerate(copy.deepcopy(stock))
    assert run(model) == pytest.approx(expected, rel=TOLERANCE)
    assert sum(expected[STEPS - 5 : STEPS]) < sum(expected[:5])
    assert {operator for operator, _ in fused_operators(model)} >= rules, str(model.fusion_report())


def mean_iou(labels, target):
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    return metrics.multiclass_jaccard_index(labels, target, CLASSES, ignore_index=IGNORE).item()


def test_transformers_trainer(dataset, tmp_path):
    require("transformers", "accelerate")
    import transformers

    names = {i: str(i) for i in range(CLASSES)}
    config = transformers.SegformerConfig(id2label=names, label2id={name: i for i, name in names.items()})
    torch.manual_seed(0)
    stock = transformers.SegformerForSemanticSegmentation(config).to(DTYPE)
    samples = [{"pixel_values": image, "labels": label} for image, label in dataset]

    def metrics(evaluation):
        logits, target = (torch.from_numpy(values) for values in evaluation)
        upsampled = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
        return {"mean_iou": mean_iou(upsampled.argmax(1), target)}

    def run(model):
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), BATCH),
            **{"gradient_accumulation_steps": 2, "max_steps": STEPS // 2, "learning_rate": 6e-4, "seed": 1},
            **{"save_strategy": "no", "report_to": [], "use_cpu": True, "remove_unused_columns": False},
            **{"lr_scheduler_type": "polynomial", "logging_steps": 1, "disable_tqdm": True},
        )
        losses = []

        class Trainer(transformers.Trainer):
            def training_step(self, *args, **keywords):
                loss = super().training_step(*args, **keywords)
                losses.append(loss.item())  # all digits, of which the log has some
                return loss

        trainer = Trainer(model, arguments, train_dataset=samples, eval_dataset=samples[:4], compute_metrics=metrics)
        trainer.train()
        evaluated = trainer.evaluate()
        trainer.save_model(str(tmp_path / "saved"))
        again = type(model).from_pretrained(tmp_path / "saved", dtype=DTYPE)
        torch.testing.assert_close(again.state_dict(), model.state_dict())
        assert trainer.predict(samples[:4]).metrics["test_loss"] == evaluated["eval_loss"]
        return [*losses, evaluated["eval_loss"], evaluated["eval_mean_iou"]]

    assert_same_run(run, stock, {"cross_entropy"})


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_torchvision_reference_script(name, dataset):
    require("torchvision")
    torch.manual_seed(0)
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    stock = torchvision_model(name, CLASSES, **options).to(DTYPE)

    def criterion(outputs, target):
        losses = {key: F.cross_entropy(logits, target, ignore_index=IGNORE) for key, logits in outputs.items()}
        return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]

    def run(model):
        torch.manual_seed(1)  # of the order of the images, and of dropout
        rate = 0.01 * BATCH / 32  # 0.01 is the script's, for four processes of eight images
        parts = [{"params": model.backbone.parameters()}, {"params": model.classifier.parameters()}]
        if hasattr(model, "aux_classifier"):
            parts.append({"params": model.aux_classifier.parameters(), "lr": 10 * rate})
        optimizer = torch.optim.SGD(parts, lr=rate, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=STEPS, power=0.9)
        losses = []
        while len(losses) < STEPS:
            model.train()
            for images, target in DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True):
                loss = criterion(model(images), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
        model.eval()
        with torch.inference_mode():
            images, target = (torch.stack(values) for values in zip(*dataset[:4], strict=True))
            labels = model(images)["out"].argmax(1)
        return [*losses[:STEPS], mean_iou(labels, target)]

    assert_same_run(run, stock, {"cross_entropy", "argmax"})


def test_lightning(dataset, tmp_path):
    require("lightning")
    import lightning

    class Segmentation(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model, self.losses = model, []

        def training_step(self, batch, _):
            out = self.model(batch[0])
            loss = F.cross_entropy(out, batch[1], ignore_index=IGNORE)
            self.losses.append(loss.item())
            self.log("accuracy", (out.argmax(1) == batch[1]).float().mean())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def run(model):
        module = Segmentation(model)
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        options = {"accumulate_grad_batches": 2, "max_epochs": STEPS * BATCH // len(dataset), "accelerator": "cpu"}
        trainer = lightning.Trainer(**options, **dict.fromkeys(quiet, False), default_root_dir=tmp_path)
        trainer.fit(module, DataLoader(dataset, batch_size=BATCH))
        assert len(module.losses) == STEPS
        return module.losses

    assert_same_run(run, Mixed(CLASSES).to(DTYPE), {"cross_entropy", "argmax"})
