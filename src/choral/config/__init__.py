"""The config of a run: every choice, typed, validated and frozen.

In: YAML files, the files named by their `base:`, and `key=value` overrides; the last value wins. Out: a `Config`, whose
sections are frozen pydantic models. It imports neither torch nor numpy, so that a login node can read configs.

Open `config.py` first. The modules named after sections hold their fields, `files` reads and writes YAML, `members` lists
the members of an ensemble, and `schema` is the JSON schema for editors. Checks across fields are model validators.

A field declared `NonBinding` decides how fast or how visibly a run works, not what it computes: it may change when a run
continues. All others identify the experiment and may not: see `identity`.
"""

from __future__ import annotations

from choral.config.analyze import AnalyzeConfig
from choral.config.augment import AugmentConfig
from choral.config.config import STAGES, Config, check_stages
from choral.config.data import DataConfig, PackConfig, ResampleConfig, Task
from choral.config.ensemble import EnsembleConfig, MemberConfig
from choral.config.evaluate import Average, EvaluateConfig, Reference
from choral.config.export import ExportConfig
from choral.config.identity import binding_difference, binding_values, config_hash
from choral.config.members import held_out_groups, resolve_members
from choral.config.model import FinetuneConfig, ModelConfig
from choral.config.tracking import TrackingConfig
from choral.config.train import TrainConfig
from choral.config.tune import TuneConfig

__all__ = [
    "STAGES",
    "AnalyzeConfig",
    "AugmentConfig",
    "Average",
    "Config",
    "DataConfig",
    "EnsembleConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FinetuneConfig",
    "MemberConfig",
    "ModelConfig",
    "PackConfig",
    "Reference",
    "ResampleConfig",
    "Task",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "binding_difference",
    "binding_values",
    "check_stages",
    "config_hash",
    "held_out_groups",
    "resolve_members",
]
