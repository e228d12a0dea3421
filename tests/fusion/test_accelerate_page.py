"""The code of docs/accelerate.md runs, and Trainer and Lightning give the stock losses."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from heads import Mixed, data
from models import LIBRARIES, build, require

import pspnet_fast

PAGE = Path(__file__).parents[2] / "docs" / "accelerate.md"


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 6
    require(*LIBRARIES)
    names = {"output_dir": str(tmp_path)}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)


def test_trainer_gives_the_stock_losses(tmp_path):
    require("transformers", "accelerate")
    import transformers

    generator = torch.Generator().manual_seed(0)
    samples = [
        {
            "pixel_values": torch.randn(3, 64, 64, generator=generator),
            "labels": torch.randint(0, 19, (64, 64), generator=generator),
        }
        for _ in range(8)
    ]
    losses, metrics = [], []
    model = build("transformers-segformer")
    for m in (copy.deepcopy(model), pspnet_fast.accelerate(copy.deepcopy(model))):
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=3,
            use_cpu=True,
            report_to=[],
            seed=1,
            save_strategy="no",
            logging_steps=1,
            label_names=["labels"],
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(m, arguments, train_dataset=samples, eval_dataset=samples)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        prediction = trainer.predict(samples)
        metrics.append((prediction.metrics["test_loss"], prediction.predictions.shape))
        trainer.save_model(str(tmp_path / "saved"))
        again = type(m).from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(again.state_dict(), m.state_dict())
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert metrics[1][0] == pytest.approx(metrics[0][0], rel=1e-4)
    assert metrics[1][1] == metrics[0][1]
    assert any(e.operator == "cross_entropy" and e.fused for e in m.fusion_report())


def test_lightning_gives_the_stock_losses(tmp_path):
    require("lightning")
    import lightning

    class Segmentation(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model, self.losses = model, []

        def training_step(self, batch, _):
            out = self.model(batch[0])
            loss = F.cross_entropy(out, batch[1], ignore_index=255)
            self.losses.append(loss.item())
            self.log("accuracy", (out.argmax(1) == batch[1]).float().mean())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = [data() for _ in range(4)]
    model = Mixed()
    losses = []
    for m in (copy.deepcopy(model), pspnet_fast.accelerate(copy.deepcopy(model))):
        module = Segmentation(m)
        trainer = lightning.Trainer(
            max_steps=4,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            accumulate_grad_batches=2,
            max_epochs=2,
        )
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
        losses.append(module.losses)
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert any(e.operator == "argmax" and e.fused for e in m.fusion_report())
