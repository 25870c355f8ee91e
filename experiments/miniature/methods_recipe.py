"""The miniature study's tasks, methods and configs."""

from dataclasses import dataclass, field

from nrt_jax.commands.configs import base_config, override, plain
from nrt_jax.config import RunConfig, stages_of
from nrt_jax.data.prompts import word_tokenizer
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.tasks import table as tasks

PROMPTS, SAMPLES = 16, 8  # per step: 128 traces
LEARNING_RATE = 3e-4
UPDATES = 16  # of a rollout, in the family "reused": one prompt each
PRETRAIN_EXAMPLES = 20000
TRAIN_EXAMPLES = 4096  # 30 steps use 480 of them, in an order that depends on the seed
TEST_EXAMPLES = 256  # greedy completions


@dataclass(frozen=True)
class StudyTask:
  """A task with its lengths (in tokens) and pretraining."""

  prompt: int
  trace: int  # limit on a sampled trace, including its stop token
  answer: int  # including the end token
  shown: int  # longest trace shown in pretraining
  trace_share: float  # share of pretraining examples that show their trace
  pretrain_steps: int
  steps: int  # of each method
  families: tuple  # of the methods that run on it
  verifier: str  # for methods that need one: token_match, or host if many answers are right
  hard: tuple = ()  # answer columns that only a trace makes easy


@dataclass(frozen=True)
class Method:
  """An entry of ALGORITHMS with settings that override its defaults."""

  algorithm: str
  family: str
  settings: dict = field(default_factory=dict)  # dotted config keys
  whole: bool = False  # the model samples its own answer too; the limit covers trace, marker and answer
  verified: bool = False


HARD = tuple(i for i, kind in enumerate(tasks.TASKS["long_answer"]().kinds) if kind == "hard")
EVERY = ("control", "nrt", "relative", "completion", "offline", "verified")
UNVERIFIED = ("control", "nrt", "relative", "completion", "offline", "unscaled")
TASKS = {
  "running_sum": StudyTask(11, 20, 8, 8, 0.2, 900, 30, (*EVERY, "reused"), "token_match", hard=(3,)),
  "long_answer": StudyTask(16, 20, 34, 13, 0.3, 700, 24, UNVERIFIED, "host", hard=HARD),
  "countdown_small": StudyTask(6, 16, 8, 11, 0.3, 500, 30, EVERY, "host"),
}


def nrt(reward: str, scale: str = "std") -> Method:
  """NRT with the quickstart's settings: cross-entropy on the answer, means over tokens."""
  settings = {"reward": reward, "answer_weight": "one", "normalisation": "token", "scale": scale}
  family = "nrt" if scale == "std" else "unscaled"
  return Method("nrt", family, {f"algorithm.{key}": value for key, value in settings.items()})


def verified(algorithm: str) -> Method:
  return Method(algorithm, "verified", whole=True, verified=True)


def reused(algorithm: str) -> Method:
  """With as many updates for each rollout as NFT's paper has, so that most of them are off the policy."""
  return Method(algorithm, "reused", {"optimizer.minibatches": UPDATES}, whole=True, verified=True)


METHODS = {
  "sft": Method("sft", "control"),
  "nrt_log_prob": nrt("log_prob"),
  "nrt_prob": nrt("prob"),
  "nrt_gm": nrt("geometric_mean"),
  "nrt_am": nrt("arithmetic_mean"),
  "nrt_ws_inverse": nrt("weighted_sum_inverse_prob"),
  "nrt_ws_log": nrt("weighted_sum_log_prob"),
  "nrt_paper": Method("nrt", "nrt"),  # WS(-log p), answer weights derived from the reward
  # Advantages not divided by the group's deviation, which hides small differences between rewards.
  "unscaled_log_prob": nrt("log_prob", "none"),
  "unscaled_prob": nrt("prob", "none"),
  "unscaled_gm": nrt("geometric_mean", "none"),
  "unscaled_am": nrt("arithmetic_mean", "none"),
  "unscaled_ws_inverse": nrt("weighted_sum_inverse_prob", "none"),
  "unscaled_ws_log": nrt("weighted_sum_log_prob", "none"),
  "jepo": Method("jepo", "relative"),
  "jepo_multi": Method("jepo_multi", "relative"),
  "verifree": Method("verifree", "relative"),
  "latro": Method("latro", "relative"),
  "rl_logit": Method("rl_logit", "relative"),
  "rl_logit_mean": Method("rl_logit", "relative", {"algorithm.reward": "mean_log_prob"}),
  "dro": Method("dro", "relative"),
  "rlpr": Method("rlpr", "completion", whole=True),
  "nover": Method("nover", "completion", whole=True),
  "dpo": Method("dpo", "offline"),
  # The hint comes first, so that the trace follows the question as in pretraining.
  "rationalization": Method("rationalization", "offline", {"prompt.hint_template": "{answer} {question}"}),
  "rft": verified("rft"),
  "nft": verified("nft"),
  "grpo": verified("grpo"),
  "dr_grpo": verified("dr_grpo"),
  "dapo": verified("dapo"),
  "rloo": verified("rloo"),
  "gspo": verified("gspo"),
  **{f"{name}_reused": reused(name) for name in ("rft", "nft", "grpo", "dr_grpo", "dapo")},
}


# ------------------------------------------------------------------------------------------------------------ configs


def make_model_directory(task: str, path: str) -> None:
  """Writes a tiny Llama in Hugging Face format: config.json and a word tokenizer."""
  tokenizer = word_tokenizer(tasks.TASKS[task]().words, path)
  config = ModelConfig(
    vocab_size=len(tokenizer),
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=128,
  )
  hf_weights.write_config(config, path)


def get_config(task: str, algorithm: str, model_path: str, steps: int):
  """The settings that pretraining and all methods share."""
  study, config = TASKS[task], base_config(algorithm)
  config.total_steps = steps
  config.model.path = model_path
  config.model.weights = "random"  # no effect when a run starts from another's policy
  config.prompt.max_prompt_length = study.prompt
  config.prompt.max_answer_length = study.answer
  config.data.source = f"task:{task}"
  config.optimizer.eps = 1e-8
  config.logging.tensorboard = False
  return config


def pretrain_config(task: str, model_path: str, steps: int, seed: int):
  """Next-token prediction; few examples show their trace."""
  study, config = TASKS[task], get_config(task, "sft", model_path, steps)
  config.seed = seed
  config.data.task_options = {"trace_share": study.trace_share}
  config.data.max_trace_length = study.shown
  config.data.examples = PRETRAIN_EXAMPLES
  config.prompts_per_step = 64
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = min(50, steps)
  config.checkpoint.every_steps = 0
  return config


def method_config(task: str, name: str, model_path: str, steps: int) -> RunConfig:
  """A method on question-answer pairs alone. The seed is not part of it: it is in the states and the data order."""
  study, method = TASKS[task], METHODS[name]
  config = get_config(task, method.algorithm, model_path, steps)
  config.data.examples = TRAIN_EXAMPLES
  config.prompts_per_step, config.samples_per_prompt = PROMPTS, SAMPLES
  config.optimizer.learning_rate = LEARNING_RATE
  config.sampling.max_trace_length = study.trace + (1 + study.answer if method.whole else 0)
  config.evaluation.data = {"source": f"task:{task}", "split": "test", "examples": TEST_EXAMPLES}
  config.evaluation.batch_prompts = TEST_EXAMPLES
  config.evaluation.max_completion_length = study.trace + 1 + study.answer
  values = plain(config, "")
  settings = {**method.settings, **({"algorithm.verifier": study.verifier} if method.verified else {})}
  for key, value in settings.items():
    override(values, key.split("."), str(value))
  return stages_of(values)[0]
