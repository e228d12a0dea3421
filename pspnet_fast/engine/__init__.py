"""Training, evaluation and prediction.

>>> from pspnet_fast.engine import load_config, train
>>> result = train(load_config("camvid_r18", ["data.root=data/camvid"]))  # doctest: +SKIP
>>> trained = Trained.load(result.folder / "best.pt")  # doctest: +SKIP
"""

from .config import DataConfig, EvalConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from .config_io import config_from_dict, dump_config, load_config, ready_configs
from .errors import CheckpointError, ConfigError, DivergedError, InferenceError, UserError
from .evaluate import ConfusionMatrix, Metrics, evaluate
from .inference import predict_labels, predict_probabilities
from .models import Trained, TrainedModel, build_model, load_trained
from .predict import colorize, overlay, predict_paths
from .run_data import PreparedDataset
from .train import TrainResult, train

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConfusionMatrix",
    "DataConfig",
    "DivergedError",
    "EvalConfig",
    "InferenceError",
    "Metrics",
    "ModelConfig",
    "OptimConfig",
    "PreparedDataset",
    "RunConfig",
    "TrainConfig",
    "TrainResult",
    "Trained",
    "TrainedModel",
    "UserError",
    "build_model",
    "colorize",
    "config_from_dict",
    "dump_config",
    "evaluate",
    "load_config",
    "load_trained",
    "overlay",
    "predict_labels",
    "predict_paths",
    "predict_probabilities",
    "ready_configs",
    "train",
]
