"""What an algorithm is, and what it is given.

An algorithm is two functions. `collect` turns prompts into a TrainBatch whose coefficients hold every decision about
rewards, advantages and normalisation; `loss` turns the current policy's log-probabilities and that batch into sums.
Neither knows devices, files or tokenizers: what touches those comes in as `Tools`.
"""

from collections.abc import Callable
from typing import NamedTuple


class Attempt(NamedTuple):
  """What a method samples for the prompts that it is given, before it is decided which of them it trains on."""

  sampled: object  # tree of [N, ...]: all that the method goes on with
  varies_N: object  # bool [N], the same for all rows of a group: whether it teaches anything
  sums: dict  # metrics of the sampling, which count groups that are not trained on too: see Collected.sums


class Role(NamedTuple):
  """How a second role of the policy's model, a critic say, samples its completions."""

  sampling: object  # rollout.sampler.SamplingConfig
  samples: int  # per prompt


def draw_once(prompts, attempt):
  """`Tools.draw` where no group is drawn again."""
  made = attempt(prompts)
  return prompts, made.sampled, made.sums


class Tools(NamedTuple):
  """Functions of the compiled program that an algorithm may call."""

  samples_per_prompt: int  # G
  minibatches: int  # optimizer updates per rollout
  trace_limit: int  # sampling.max_trace_length, tokens
  marker_ids: tuple
  pad_id: int
  # (params, prompts, key) -> (Rollouts [N], AnswerScores after the trace [N], AnswerScores after an empty trace [B])
  rollout: Callable
  # the same for whole completions (trace, marker, own answer): the reference answer is scored in the own one's place
  complete: Callable
  # (params, prompts) -> AnswerScores after an empty trace [B]
  score_empty_trace: Callable
  # (params, batch, entropy_gradient=False) -> (log-probability, entropy) of each token, [N, L], sampled tokens at the
  # sampling temperature; and the log-probability of what stands in the row where it is not what was sampled
  log_probs: Callable
  # (params, batch) -> log-probability of each token [N, L], no gradient, a micro-batch at a time: for other parameters
  score_batch: Callable
  # (params, batch) -> the batch with their log-probabilities as the updates compute them, where several need them
  score_start: Callable
  # sum over the devices that share the batch: identity in one program over a mesh, psum under pmap
  all_sum: Callable
  # (prompts, attempt: prompts -> Attempt) -> (prompts [B], Attempt.sampled [N, ...], Attempt.sums): calls `attempt` on
  # one part of the prompts after another, until enough groups vary, and keeps as many prompts as the step trains on
  draw: Callable = draw_once
  # (params, prompts) -> AnswerScores right behind the prompts, without prompt.trace_open and marker [B]
  score_bare: Callable | None = None
  temperature: float = 1.0  # sampling.temperature
  # the tokens that end a completion, any of which ends an answer as well as the one that the reference has
  end_ids: tuple = ()
  # (params, prompts [M], key, role: Role) -> Rollouts [M * role.samples] of completions, which are scored by nobody
  sample: Callable | None = None
  critic: object = None  # data.critic_prompts.CriticForm, where the method has a critic
  all_rows: Callable = lambda tree: tree  # the rows of all devices that share the batch, one after another
  # ("policy" or "critic") -> the Tools for batches of this role's rows alone
  for_role: Callable | None = None
  # how right the grader on the host finds each completion of `complete`, in [0, 1]: float32 [N] (step/host_grading.py)
  host_label_N: object = None


class Collected(NamedTuple):
  """What `collect` returns."""

  batch: object  # arrays.TrainBatch
  sums: dict  # metric name -> (numerator, denominator), or a plain number combined by max if it ends in "_max"
  samples: dict  # name -> array [N, ...]: what samples.jsonl shows of each row
  memory: dict | None = None  # the new `states.memory`; None: as it was
  critic: object = None  # the TrainBatch of a critic with weights of its own; None: its rows are in `batch`, if any


class Algorithm(NamedTuple):
  """One row of the table of methods."""

  config: type  # frozen dataclass of the keys under `algorithm`
  collect: Callable  # (tools, config, states, prompts, key) -> Collected
  loss: Callable  # (tools, config, params, batch) -> LossSums
  samples_traces: bool  # False for supervised methods: one row per prompt, no sampling
  pairs: bool = False  # the batch holds, for each prompt, two adjacent rows that the loss compares: never cut apart
  needs_hints: bool = False  # it samples after prompts that show the answer: Prompts.hint_BQ
  has_critic: bool = False  # a second role reads the answers: its prompts begin with Prompts.hint_BQ
  packs: bool = False  # `collect` also takes arrays.PackedPrompts
  lives_in_worlds: bool = False  # an environment may write into what it samples, and reward it
  # (config, metrics of a step) -> lines of warning
  alarms: Callable = lambda config, metrics: []
  # (config, CriticForm or None) -> name -> array of any shape: what a method remembers from step to step
  memory: Callable = lambda config, critic=None: {}
