"""Training: the loop, checkpoints, pictures of a run, and the command-line options that the programs share."""

from tinynet.train.checkpoint import CheckpointError, export_weights, read_checkpoint, save_checkpoint
from tinynet.train.classifier import Classifier
from tinynet.train.crops import MultiCrop
from tinynet.train.determinism import make_deterministic
from tinynet.train.trainer import DTYPES, Progress, Trainer, TrainingError, accuracy, warm_up_and_cosine

__all__ = [
    "DTYPES",
    "CheckpointError",
    "Classifier",
    "MultiCrop",
    "Progress",
    "Trainer",
    "TrainingError",
    "accuracy",
    "export_weights",
    "make_deterministic",
    "read_checkpoint",
    "save_checkpoint",
    "warm_up_and_cosine",
]
