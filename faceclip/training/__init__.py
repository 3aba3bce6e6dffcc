"""Configuration, checkpoints, data order, logs and the training loop, shared by all training commands."""

from faceclip.settings import from_dict, load_config, parse_config, to_dict
from faceclip.training.command import run_training
from faceclip.training.interfaces import ContrastiveTask, Result, StepContext, Task, TrainerConfig
from faceclip.training.run_folder import check_output
from faceclip.training.sampler import MapSource
from faceclip.training.trainer import Trainer

__all__ = [
    "ContrastiveTask",
    "MapSource",
    "Result",
    "StepContext",
    "Task",
    "Trainer",
    "TrainerConfig",
    "check_output",
    "from_dict",
    "load_config",
    "parse_config",
    "run_training",
    "to_dict",
]
