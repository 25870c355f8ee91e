"""One method's training within a phase of an arm: its data, its optimizer, its compiled step."""

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax.data import batches
from nrt_jax.step import opening, programs, throughput

SHOWN = ("reward/mean", "trace/length_mean", "answer/logp", "policy/entropy")


class Lane:
  """A method's training on its data, step by step."""

  def __init__(self, bench, phase, params, key: int):
    run = bench.config(phase)
    self.bench, self.phase, self.position, self.history = bench, phase, batches.Position(), []
    self.setup = opening.open_setup(run, bench.model, bench.tokenizer, bench.form)
    self.data = bench.dataset(run, self.setup)
    # A step donates its states, so they must not share buffers with where other arms go on from.
    self.states = programs.init_states(self.setup, jax.tree.map(jnp.copy, params), jax.random.key(key))

  @property
  def params(self):
    return self.states.policy.params

  def step(self, seed: int) -> None:
    batch, self.position = batches.batch(self.data, self.position, self.phase.prompts, seed)
    batch = jax.device_put(batch)
    train_step, self.work = self.bench.program(self.phase, self.setup, self.states, batch)
    self.states, metrics, _ = train_step(self.states, batch)
    self.history.append(metrics)

  def go_on_from(self, params) -> None:
    """Other parameters; the optimizer stays as it is."""
    policy = self.states.policy.replace(params=jax.tree.map(jnp.copy, params))
    self.states = self.states.replace(policy=policy)

  def take_metrics(self, counts: dict) -> dict:
    """Means of SHOWN over the steps since the last call, which are added to the counts."""
    lines = [{name: float(value) for name, value in line.items()} for line in jax.device_get(self.history)]
    shown = {name: float(np.mean([line[name] for line in lines])) for name in SHOWN if name in lines[0]}
    for line in lines if not self.phase.given else ():
      tokens = throughput.take_tokens(line)
      counts["sampled"] += tokens.get("generated", 0.0)
      counts["trained"] += tokens["trained"]
      counts["flops"] += sum(throughput.model_flops(self.work, tokens).values())
    self.history = []
    return shown
