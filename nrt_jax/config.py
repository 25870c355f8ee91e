"""Parses the nested mapping of a config file into frozen dataclasses. A misspelled key is an error that names it."""

import copy
import dataclasses
import json
import math
import sys
import types
import typing
from dataclasses import dataclass, field

from nrt_jax import curricula
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.data.prompts import PromptConfig
from nrt_jax.data.sources import TASK, DataConfig
from nrt_jax.environments.table import ENVIRONMENTS
from nrt_jax.errors import UserError, choices, require_choice
from nrt_jax.evaluation.held_out import EvaluationConfig
from nrt_jax.model.architecture import ADAPTABLE
from nrt_jax.model.token_rows import TokensConfig
from nrt_jax.optimizers.update_rule import OptimizerConfig
from nrt_jax.records.checkpoint import CheckpointConfig
from nrt_jax.records.metrics import LoggingConfig
from nrt_jax.records.stopping import StopConfig
from nrt_jax.rollout.sampler import SamplingConfig
from nrt_jax.sharding import ParallelConfig

# The keys that a stage may set. All others (model, devices, files) apply to the whole run.
STAGE_KEYS = (
  "total_steps", "stop", "curriculum", "prompts_per_step", "samples_per_prompt", "data", "sampling", "algorithm",
  "environment", "optimizer", "tokens", "evaluation",
)  # fmt: skip

NEW_ROWS = ("mean", "description", "end_token")
NOT_KEYS = ("algorithm_name", "environment_name", "stage")  # fields of RunConfig that are no keys of a config


# Steps are counted in int32; the rows of one step are laid out one by one.
MOST = {"total_steps": 2**31 - 1, "prompts_per_step": 2**20, "samples_per_prompt": 2**16}


@dataclass(frozen=True)
class ModelSource:
  """Where the policy comes from, and how it is computed."""

  path: str | None = None  # directory in Hugging Face format: config.json, safetensors, tokenizer
  weights: str = "pretrained"  # pretrained: from `path` | random: only the architecture of `path`
  compute_dtype: str = "float32"  # float32 | bfloat16; master parameters stay float32
  remat: str = "none"  # none | dots: saves projections and what splash attention needs | full: recomputes layers
  layer_loop: str = "auto"  # scan | unroll | auto: scan, but few layers on a CPU are unrolled; see docs/decisions.md
  attention: str = "auto"  # auto | xla | cudnn | splash: kernel for whole rows; auto: by the platform of the devices
  attention_block: int = 512  # with xla: queries of a row whose scores are in memory at once
  long_rope: bool = False  # with longrope scaling: its long factors, for rows beyond the original length; all rows
  expert_product: str = "auto"  # sorted: each expert runs its tokens | all: all run all | auto: sorted on TPUs
  head_chunk: int = 2048  # tokens per device whose logits are in memory at once
  lora_rank: int = 0  # rank of the adapters; above 0, only they and the rows of added tokens are trained; 0 trains all
  lora_alpha: float = 16.0  # adapters are scaled by alpha / rank
  lora_targets: tuple[str, ...] = ADAPTABLE  # matrices that get an adapter
  new_rows: str = "mean"  # of tokens that `path` lacks: mean of its rows | description | end_token (released NRT)
  new_rows_description: str = "The answer is"  # with description: a text whose tokens' rows are averaged

  def __post_init__(self):
    require_choice("model.new_rows", self.new_rows, NEW_ROWS)
    require_choice("model.weights", self.weights, ("pretrained", "random"))


@dataclass(frozen=True)
class RunConfig:
  """The complete configuration of one stage of a run."""

  algorithm_name: str  # a row of ALGORITHMS
  algorithm: object  # that row's config
  environment_name: str | None = None  # a row of ENVIRONMENTS; None: the policy writes alone
  environment: object | None = None  # that row's config, or null: what writes into the policy's rows, and rewards them
  stage: str = "main"
  seed: int = 0  # seeds random weights, data order and traces; 0 to 2**32 - 1
  total_steps: int = 100  # steps of this stage; the top-level value caps every stage
  prompts_per_step: int = 32  # over all devices
  samples_per_prompt: int = 8  # G
  from_checkpoint: str | None = None  # workdir whose newest policy replaces model.path's weights at the start
  model: ModelSource = field(default_factory=ModelSource)
  data: DataConfig = field(default_factory=DataConfig)
  prompt: PromptConfig = field(default_factory=PromptConfig)
  sampling: SamplingConfig = field(default_factory=SamplingConfig)
  optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
  parallel: ParallelConfig = field(default_factory=ParallelConfig)
  checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
  evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
  stop: StopConfig = field(default_factory=StopConfig)
  tokens: TokensConfig = field(default_factory=TokensConfig)
  logging: LoggingConfig = field(default_factory=LoggingConfig)

  def __post_init__(self):
    for key in ("total_steps", "prompts_per_step", "samples_per_prompt"):
      if not 1 <= getattr(self, key) <= MOST[key]:
        raise UserError(f"{key}: found {getattr(self, key)}, allowed: 1 to {MOST[key]}")
    if not 0 <= self.seed < 2**32:
      raise UserError(f"seed: found {self.seed}, allowed: 0 to {2**32 - 1}")
    if ALGORITHMS[self.algorithm_name].samples_traces:
      self._check_sampling()
    self._check_environment()
    self._check_trainable()
    self._check_tokens()
    if self.data.packing and not ALGORITHMS[self.algorithm_name].packs:
      packs = ", ".join(name for name, row in ALGORITHMS.items() if row.packs)
      raise UserError(f"data.packing: found {self.data.packing}, allowed: 0, or algorithm.name {packs}")
    for key in ("packing", "weight_column") if self.evaluation.data is not None else ():
      found = getattr(self.evaluation.data, key)
      if found:
        raise UserError(f"evaluation.data.{key}: found {found!r}, allowed: {0 if key == 'packing' else 'null'}")

  def _check_environment(self):
    lives = [name for name, row in ALGORITHMS.items() if row.lives_in_worlds]
    if self.environment_name is not None and self.algorithm_name not in lives:
      raise UserError(
        f"environment.name: found {self.environment_name!r} with algorithm.name {self.algorithm_name!r}, "
        f"allowed: null, or algorithm.name {', '.join(lives)}"
      )
    judges = [name for name, row in ENVIRONMENTS.items() if row.environment.judges]
    if getattr(self.algorithm, "verifier", None) == "environment" and self.environment_name not in judges:
      raise UserError(
        f"algorithm.verifier: found 'environment' with environment.name {self.environment_name!r}, "
        f"allowed: another verifier, or environment.name {', '.join(judges)}"
      )

  def _check_trainable(self):
    if self.optimizer.trainable == "all":
      return
    found = f"optimizer.trainable: found {self.optimizer.trainable!r}"
    if self.model.lora_rank:
      raise UserError(f"{found} with model.lora_rank {self.model.lora_rank}, which freezes the trunk, allowed: all")
    if getattr(getattr(self.algorithm, "critic", None), "own_weights", False):
      raise UserError(f"{found} with algorithm.critic.own_weights, allowed: all")

  def _check_tokens(self):
    if self.tokens.active == "all":
      return
    found = f"tokens.active: found {self.tokens.active!r}"
    if self.model.lora_rank:
      found = f"{found} with model.lora_rank {self.model.lora_rank}"
      raise UserError(f"{found}, which trains no rows of new tokens, allowed: all")
    if ALGORITHMS[self.algorithm_name].has_critic:
      raise UserError(f"{found} with algorithm.name {self.algorithm_name!r}, whose critic has own words, allowed: all")
    if self.environment_name is not None:
      raise UserError(f"{found} with environment.name {self.environment_name!r}, which has own words, allowed: all")

  def _check_sampling(self):
    compares = getattr(self.algorithm, "compares_samples", None)
    if self.samples_per_prompt == 1 and compares:
      raise UserError(f"samples_per_prompt: found 1, allowed: 2 or more, since {compares} compares samples")
    if getattr(self.algorithm, "verifier", None) == "token_match" and self.prompt.answer_in == "completion":
      raise UserError(
        "algorithm.verifier: found 'token_match', which looks behind the marker, with prompt.answer_in 'completion', "
        "allowed: a grader on the host, or prompt.answer_in 'behind_marker'"
      )
    if self.optimizer.minibatches > 1 and getattr(self.algorithm, "trace_loss", None) == "reinforce":
      found = f"{self.optimizer.minibatches} with algorithm.trace_loss 'reinforce'"
      raise UserError(
        f"optimizer.minibatches: found {found}, which has no ratio: later updates would take the samples for their "
        "own; allowed: 1, or another trace_loss, such as truncated_importance"
      )
    if self.sampling.temperature == 0:
      raise UserError("sampling.temperature: found 0 (greedy), allowed in training: above 0, or all samples are equal")


def defaults(algorithm: str = "nrt") -> dict:
  """Every key with its default as a nested dict, for a config file to start from."""
  require_choice("algorithm.name", algorithm, ALGORITHMS)
  run = RunConfig(algorithm, ALGORITHMS[algorithm].config())
  values = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name not in NOT_KEYS}
  values = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in values.items()}
  values["algorithm"] = {"name": algorithm, **values["algorithm"]}
  values["data"]["task_options"] = {}
  return json.loads(json.dumps(values))  # lists instead of tuples, as in a config file


def stages_of(values: dict) -> list[RunConfig]:
  """Reads a whole config: one RunConfig per stage, in order. Raises UserError naming the key that is wrong."""
  values = copy.deepcopy(dict(values))
  stages, curriculum = values.pop("stages", None), values.pop("curriculum", None)
  if not stages and curriculum is None:
    return [_run_config(values, "main", "")]
  if stages and curriculum is not None:
    raise UserError("curriculum: found one beside stages, allowed: inside of a stage")
  if not isinstance(stages or [], (list, tuple)):
    raise UserError(f"stages: found {stages!r}, allowed: a list of mappings")
  listed = [(f"stages[{number}].", stage) for number, stage in enumerate(stages or [])]
  cap = _convert(int, values.get("total_steps", RunConfig.total_steps), "total_steps")
  runs, names = [], set()
  for where, stage in listed or [("", {"name": "main", "curriculum": curriculum})]:
    stage = _mapping(stage, where.rstrip("."))
    _require_name(stage.get("name"), names, where)
    for key in stage:
      if key not in ("name", *STAGE_KEYS):
        raise UserError(f"{where.rstrip('.')}: unknown key: {choices(key, STAGE_KEYS)}")
    for one in _written_out(values, stage, where):
      name = one.pop("name")
      _require_name(name, names, where)
      names.add(name)
      merged = _merge(values, one)
      merged["total_steps"] = min(_convert(int, merged.get("total_steps", cap), f"{where}total_steps"), cap)
      runs.append(_run_config(merged, name, where))
  return runs


def _require_name(name, names: set, where: str) -> None:
  if not isinstance(name, str) or name in names:
    raise UserError(f"{where}name: found {name!r}, allowed: a text of its own for each stage")


def _written_out(values: dict, stage: dict, where: str) -> list[dict]:
  """The stage alone, or the stages of its curriculum."""
  found = stage.pop("curriculum", None)
  if found is None:
    return [stage]
  curriculum = build(curricula.CurriculumConfig, found, f"{where}curriculum")
  data = stage["data"] = _mapping(stage.get("data", {}), f"{where}data")
  data["task_options"] = _mapping(data.get("task_options", {}), f"{where}data.task_options")
  source = data.get("source", _mapping(values.get("data", {}), "data").get("source", DataConfig.source))
  if not str(source).startswith(TASK):
    found = f"{curriculum.option!r} with data.source {source!r}"
    raise UserError(f"{where}curriculum.option: found {found}, allowed: an option of a built-in task")
  return curricula.written_out(curriculum, stage, _convert(int, values.get("seed", 0), "seed") % 2**32)


def _merge(base: dict, over: dict) -> dict:
  """Merges `over` into `base`, key by key. A different algorithm or environment starts from its own defaults."""
  merged = dict(base)
  for key, value in over.items():
    old = base.get(key)
    mappings = isinstance(old, dict) and isinstance(value, dict)
    named = key in ("algorithm", "environment")
    other = named and mappings and value.get("name") not in (None, old.get("name"))
    merged[key] = _merge(old, value) if mappings and not other else value
  return merged


def _run_config(values: dict, stage: str, where: str) -> RunConfig:
  values = dict(values)
  algorithm = _mapping(values.pop("algorithm", {}), f"{where}algorithm")
  name = _convert(str, algorithm.pop("name", "nrt"), f"{where}algorithm.name")
  require_choice(f"{where}algorithm.name", name, ALGORITHMS)
  allowed = [f.name for f in dataclasses.fields(RunConfig) if f.name not in NOT_KEYS]
  for key in values:
    if key not in allowed:
      raise UserError(f"config: unknown key: {choices(key, [*allowed, 'stages'])}")
  settings = build(ALGORITHMS[name].config, algorithm, f"{where}algorithm")
  fixed = {"algorithm_name": name, "algorithm": settings, "stage": stage, **_environment(values, where)}
  return build(RunConfig, values, where.rstrip("."), fixed)


def _environment(values: dict, where: str) -> dict:
  """The fields of RunConfig that say which environment there is; takes its mapping out of `values`."""
  found = values.pop("environment", None)
  if found is None:
    return {}
  options = _mapping(found, f"{where}environment")
  name = _convert(str, options.pop("name", ""), f"{where}environment.name")
  require_choice(f"{where}environment.name", name, ENVIRONMENTS)
  config = build(ENVIRONMENTS[name].config, options, f"{where}environment")
  return {"environment_name": name, "environment": config}


def build(cls, values, where: str, fixed: dict | None = None):
  """Builds the dataclass `cls` from a mapping, including nested dataclasses; every error names the full key."""
  values = _mapping(values, where)
  hints = typing.get_type_hints(cls)
  arguments = dict(fixed or {})
  for key, value in values.items():
    name = f"{where}.{key}" if where else key
    if key not in hints:
      raise UserError(f"{where or 'config'}: unknown key: {choices(key, hints)}")
    arguments[key] = _convert(hints[key], value, name)
  try:
    return cls(**arguments)
  except UserError as error:  # its key starts at its own dataclass: "data.limit", even for evaluation.data
    outer, dot, own = where.rpartition(".")
    raise UserError(f"{outer}{dot}{error}" if str(error).startswith(f"{own}.") else str(error)) from error


def _mapping(values, where: str) -> dict:
  if not hasattr(values, "items"):
    raise UserError(f"{where}: found {values!r}, allowed: a mapping of keys")
  return dict(values)


def _frozen(value):
  """Converts lists to tuples recursively, so that config values are hashable."""
  if hasattr(value, "items"):
    return {key: _frozen(item) for key, item in value.items()}
  return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _convert(hint, value, name: str):
  """Checks a value against its annotation; accepts ints as floats, lists as tuples, mappings as dataclasses."""
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
  if value is None and type(None) in options:
    return None
  for option in options:
    if dataclasses.is_dataclass(option):
      return build(option, value, name)
    kind = typing.get_origin(option) or option
    if kind is tuple and (hasattr(value, "items") or isinstance(value, (list, tuple))):
      return _frozen(value)
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{name}: found {value}, allowed: finite numbers")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
      if abs(value) > sys.float_info.max:
        raise UserError(f"{name}: found an integer of {value.bit_length()} bits, allowed: up to 1.8e308")
      return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
      return value
  raise UserError(f"{name}: found {value!r}, allowed: {' or '.join(map(_name_of_type, options))}")


def _name_of_type(hint) -> str:
  names = {type(None): "null", tuple: "a mapping"}  # a bare tuple holds the pairs of a mapping
  if hint in names:
    return names[hint]
  return "a list" if typing.get_origin(hint) is tuple else getattr(hint, "__name__", str(hint))
