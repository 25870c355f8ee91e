"""nrt_jax's side of peers.py, in this repository's own environment: one compiled program per step.

It uses a config and `programs.build_train_step`. `grpo`'s reward is computed inside the program, since a verifier that
only reads tokens needs no host call.
"""

import dataclasses
import importlib.metadata

import jax
import jax.numpy as jnp
import setups
import workload

from nrt_jax import config, sharding
from nrt_jax.algorithms import rlvr
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.commands.configs import override
from nrt_jax.data import batches
from nrt_jax.data.prompts import PromptFormat
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import forward, init_params, logits
from nrt_jax.step import programs
from nrt_jax.step.policy import param_shardings

ROW = "grpo_even_words"


def even_share(token_NR, length_N):
  """The share of even ids among each completion's words, float32 `[N]`."""
  sampled_NR = jnp.arange(token_NR.shape[1])[None] < length_N[:, None]
  word_NR = sampled_NR & (token_NR >= workload.FIRST_WORD)
  return (word_NR & (token_NR % 2 == 0)).sum(1) / jnp.maximum(word_NR.sum(1), 1)


def collect(tools, algorithm, states, prompts, key):
  """GRPO with `even_share` as verifier. Its value is passed on like a label from a grader on the host."""
  rollouts = tools.complete(states.policy.params, prompts, key)[0]
  label_N = even_share(rollouts.token_NR, rollouts.length_N)
  tools = tools._replace(complete=lambda *_: (rollouts, None, None), host_label_N=label_N)
  return rlvr.collect(tools, dataclasses.replace(algorithm, verifier="host"), states, prompts, key)


EVEN_WORDS = ALGORITHMS["grpo"]._replace(collect=collect)


def run_config(name: str, sizes: workload.Sizes, steps: int, overrides=()) -> config.RunConfig:
  """The config of a workload, with `overrides` (KEY=VALUE) applied."""
  ALGORITHMS.setdefault(ROW, EVEN_WORDS)
  values = config.defaults({"grpo": ROW, "verifier_free": "nrt"}[name])
  values.update(total_steps=steps, prompts_per_step=sizes.prompts, samples_per_prompt=sizes.samples)
  values["sampling"]["max_trace_length"] = sizes.trace_length
  values["prompt"].update(max_prompt_length=sizes.prompt_length, max_answer_length=sizes.answer_length)
  # As in torch's AdamW; schedule and clipping as in TRL's trainer.
  values["optimizer"].update(learning_rate=workload.LEARNING_RATE, beta2=0.999, eps=1e-8, weight_decay=0.0)
  values["optimizer"].update(schedule="linear", max_grad_norm=1.0)
  if name == "grpo":
    values["algorithm"].update(reference="none", kl_coef=0.0)
  else:
    # What TRL's reward function computes. In addition, nrt trains on the answer (its supervised term) and the marker.
    values["algorithm"].update(reward="geometric_mean", baseline="none")
  for text in overrides:
    key, _, value = text.partition("=")
    override(values, key.split("."), value)
  return config.stages_of(values)[0]


def model_config(sizes: workload.Sizes, run: config.RunConfig) -> ModelConfig:
  return setups.model_config(sizes, run, rms_norm_eps=workload.RMS_NORM_EPS, rope_theta=workload.ROPE_THETA)


def save_model(sizes: workload.Sizes, path: str) -> None:
  """Writes random weights in Hugging Face format, from which all sides start."""
  model = model_config(sizes, run_config("grpo", sizes, 1))
  hf_weights.save_params(jax.jit(init_params, static_argnums=0)(model, jax.random.key(0)), model, path)


def make_setup(name: str, sizes: workload.Sizes, steps: int, overrides=()) -> programs.Setup:
  run = run_config(name, sizes, steps, overrides)
  end = sizes.end_id  # outside of the vocabulary, so that every sample has full length
  form = PromptFormat("plain", (), (sizes.marker_id,), (end,), end, 0, sizes.vocab, ())
  return programs.Setup(run, model_config(sizes, run), form, sharding.make_mesh(run.parallel))


def make_batches(setup: programs.Setup, sizes: workload.Sizes, steps: int) -> list:
  """The prompts and answers of each step."""
  prompts, answers = workload.prompt_ids(sizes, steps), workload.answer_ids(sizes, steps)
  widths, B = (sizes.prompt_length, sizes.answer_length, 0), sizes.prompts
  made = []
  for start in range(0, B * steps, B):
    rows = slice(start, start + B)
    packed = batches.pack(prompts[rows], answers[rows], [[]] * B, range(start, start + B), widths, pad_id=0)
    made.append(sharding.place_rows(setup.mesh, packed))
  return made


def start_states(setup: programs.Setup, path: str):
  params = hf_weights.load_params(path, setup.model, param_shardings(setup.model, setup.mesh))
  init = jax.jit(lambda p, k: programs.init_states(setup, p, k), out_shardings=programs.state_shardings(setup))
  return init(params, jax.random.key(setup.run.seed))


def first_logits(setup: programs.Setup, params, sizes: workload.Sizes):
  """Logits of the first two prompts, float32 `[2, P, V]`."""
  token_BP = jnp.asarray(workload.prompt_ids(sizes, 1)[:2])
  position_BP = jnp.broadcast_to(jnp.arange(token_BP.shape[1])[None], token_BP.shape)
  return jax.jit(lambda p: logits(p, setup.model, forward(p, setup.model, token_BP, position_BP)[0]))(params)


def train(setup: programs.Setup, path: str, sizes: workload.Sizes, steps: int, clock: workload.Clock):
  """Runs `steps` steps as training.py does, but writes no files; returns each step's tokens and mean reward."""
  tokens, rewards = [], []
  with jax.set_mesh(setup.mesh):
    states, given = start_states(setup, path), make_batches(setup, sizes, steps)
    train_step = programs.build_train_step(setup)
    for batch in given:
      states, metrics, _ = train_step(states, batch)
      metrics = jax.device_get(metrics)  # waits for the step
      clock.step_ended()
      tokens.append(int(metrics["tokens/generated"]))
      rewards.append(metrics["reward/mean"])
  return tokens, rewards


def main(argv=None) -> None:
  args = workload.arguments(argv)
  sizes, steps = workload.sizes_of(args), args.steps + 1
  setup, clock = make_setup(args.workload, sizes, steps, args.set), workload.Clock()
  with jax.set_mesh(setup.mesh):
    reference = first_logits(setup, hf_weights.load_params(args.model, setup.model), sizes)
  workload.save_logits(args, "nrt_jax", jax.device_get(reference))
  tokens, rewards = train(setup, args.model, sizes, steps, clock)
  versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
  workload.report("nrt_jax", args, clock, versions, tokens, rewards, overrides=args.set)


if __name__ == "__main__":
  main()
