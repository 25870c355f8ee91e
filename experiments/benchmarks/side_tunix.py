"""tunix's side of peers.py, in an environment with google-tunix: GRPOLearner with its vanilla sampler.

`grpo` only: its reward functions get texts, and no model to score an answer with.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workload
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout

ROLES = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)


def load_model(path: str, sizes: workload.Sizes, mesh):
  config = llama.ModelConfig(
    num_layers=sizes.layers,
    vocab_size=sizes.vocab,
    embed_dim=sizes.hidden,
    hidden_dim=sizes.mlp,
    num_heads=sizes.heads,
    head_dim=sizes.head_dim,
    num_kv_heads=sizes.kv_heads,
    rope_theta=int(workload.ROPE_THETA),
    norm_eps=workload.RMS_NORM_EPS,
    weight_tying=False,
  )
  with mesh:
    return llama_params.create_model_from_safe_tensors(path, config, mesh, jnp.float32)


def first_logits(model, prompts):
  """Logits of prompts of one length, `[B, P, V]`."""
  token = jnp.asarray(prompts)
  B, P = token.shape
  position, causal = jnp.broadcast_to(jnp.arange(P), (B, P)), jnp.tril(jnp.ones((P, P), bool))
  return model(token, position, None, jnp.broadcast_to(causal, (B, P, P)))[0]


def make_cluster(model, sizes: workload.Sizes, steps: int, mesh):
  training = rl_cluster.RLTrainingConfig(
    actor_optimizer=optax.adamw(workload.LEARNING_RATE, weight_decay=0.0),
    eval_every_n_steps=10 * steps,
    max_steps=steps,
    mini_batch_size=sizes.prompts,
    train_micro_batch_size=sizes.prompts,
  )
  rollout = base_rollout.RolloutConfig(
    max_tokens_to_generate=sizes.trace_length,
    max_prompt_length=sizes.prompt_length,
    kv_cache_size=sizes.prompt_length + sizes.trace_length,
    temperature=1.0,
    top_p=1.0,  # None would be greedy
    top_k=None,
    eos_tokens=[sizes.end_id],
  )
  config = rl_cluster.ClusterConfig(
    role_to_mesh=dict.fromkeys(ROLES, mesh),
    rollout_engine="vanilla",
    offload_to_cpu=False,
    training_config=training,
    rollout_config=rollout,
  )
  tokenizer = workload.make_tokenizer(sizes)
  return rl_cluster.RLCluster(actor=model, reference=None, tokenizer=tokenizer, cluster_config=config)


def count_tokens(cluster, clock: workload.Clock, counts: list) -> None:
  """Wraps rollouts to count tokens and mark the end of the previous step: tunix has no callback at a step's end."""
  generate = cluster.generate

  def timed(*args, **kwargs):
    if counts:
      clock.step_ended()
    result = generate(*args, **kwargs)
    counts.append(sum(len(ids) for ids in result.tokens))
    return result

  cluster.generate = timed


def main(argv=None) -> None:
  args = workload.arguments(argv)
  sizes, steps, clock, tokens, rewards = workload.sizes_of(args), args.steps + 1, workload.Clock(), [], []
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp"))
  model = load_model(args.model, sizes, mesh)
  prompts = workload.prompt_ids(sizes, steps)
  workload.save_logits(args, "tunix", first_logits(model, prompts[:2]))

  def reward(prompts, completions, **_):
    values = [workload.even_share(text) for text in completions]
    rewards.append(sum(values) / len(values))
    return values

  cluster = make_cluster(model, sizes, steps, mesh)
  count_tokens(cluster, clock, tokens)
  algorithm = GRPOConfig(num_generations=sizes.samples, num_iterations=1, beta=0.0, epsilon=0.2)
  learner = GRPOLearner(rl_cluster=cluster, reward_fns=reward, algo_config=algorithm)
  texts = np.array([workload.as_text(ids) for ids in prompts]).reshape(steps, sizes.prompts)
  with mesh:
    learner.train([{"prompts": rows} for rows in texts])
  jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
  clock.step_ended()
  versions = {
    name: importlib.metadata.version(name) for name in ("google-tunix", "jax", "flax", "qwix", "transformers")
  }
  workload.report("tunix", args, clock, versions, tokens, rewards)


if __name__ == "__main__":
  main()
