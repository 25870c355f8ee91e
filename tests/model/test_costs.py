"""The chip table, and costs computed by hand and by counting."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from nrt_jax.model import costs
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import init_params
from nrt_jax.step import hardware

TINY = ModelConfig(
  vocab_size=11, hidden_size=6, intermediate_size=10, num_hidden_layers=3, num_attention_heads=4,
  num_key_value_heads=2, head_dim=4,
)  # fmt: skip
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 3}
LLAMA_8B = ModelConfig(
  vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
  num_key_value_heads=8, head_dim=128,
)  # fmt: skip


def test_chips_are_found_by_the_kind_that_jax_shows():
  assert hardware.lookup("TPU v5 lite").name == "v5e"
  assert hardware.lookup("TPU v5").hbm_bytes == 95 * 2**30
  assert hardware.lookup("NVIDIA H200").hbm_bandwidth == 4.8e12
  assert hardware.lookup("cpu") is None
  assert hardware.lookup("TPU v5 litepod") is None
  kinds = [kind for chip in hardware.CHIPS for kind in chip.kinds]
  assert len(kinds) == len(set(kinds))


def test_a_device_of_v7x_is_half_a_chip():
  chip, device = hardware.by_name("v7x"), hardware.lookup("TPU7x")
  assert (device.flops, device.hbm_bytes) == (chip.flops / 2, 96 * 2**30)
  assert (device.hbm_bandwidth, device.link_bandwidth, device.devices) == (3690e9, 300e9, 1)


def test_parameters_of_llama_8b():
  assert costs.parameter_count(LLAMA_8B) == 8_030_261_248  # as the model's card has it


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"tie_word_embeddings": True, "qk_norm": True},
    {"qk_norm": True, "qk_norm_joint": True, "norms": "post"},
    {"norms": "both"},
    {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
    {"lora_rank": 2, "lora_targets": ("q", "v", "down")},
    {"lora_rank": 2, "lora_rows": (1, 5)},
    {"lora_rank": 2, "lora_rows": (1, 5), "tie_word_embeddings": True},
    EXPERTS,
    {**EXPERTS, "lora_rank": 2, "lora_targets": ("q", "up", "down")},
  ],
)
def test_parameters_are_those_that_init_makes(changes):
  config = dataclasses.replace(TINY, **changes)
  made = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
  assert costs.parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("start,count", [(0, 1), (0, 7), (4, 5), (2, 0)])
def test_seen_tokens_by_counting(window, start, count):
  config = dataclasses.replace(TINY, sliding_window=window, sliding_layers=(True, False, True) if window else None)
  position = start + np.arange(count)
  full = sum(p + 1 for p in position)
  cut = sum(min(p + 1, window or p + 1) for p in position)
  assert costs.seen_tokens(config, start, count) == pytest.approx((2 * cut + full) / 3)


def test_forward_flops_are_those_of_the_matrix_products():
  """Multiplications of a 4-token row behind 2 cached tokens, one matrix at a time, the causal half of attention."""
  D, F, H, K, h, V = 6, 10, 4, 2, 4, 11
  products = 0
  for token in range(4):
    products += D * H * h + 2 * D * K * h + H * h * D + 3 * D * F
    seen = 2 + token + 1
    products += H * h * seen + H * h * seen
  assert costs.forward_flops(TINY, 2, 4, heads=3) == 2 * (3 * products + 3 * D * V)


def test_forward_flops_agree_with_xla():
  """One dense layer product by product: XLA counts full attention, so tokens^2 takes the place of the causal half."""
  T, matrices = 8, [np.zeros(shape, np.float32) for shape in costs.matrix_shapes(TINY).values()]
  counted = 0
  for matrix in matrices:
    product = jax.jit(lambda x, w: x @ w).lower(np.zeros((T, matrix.shape[0]), np.float32), matrix).compile()
    counted += product.cost_analysis()["flops"]
  q = np.zeros((4, T, 4), np.float32)
  scores = jax.jit(lambda q, k: jax.numpy.einsum("htd,hsd->hts", q, k)).lower(q, q).compile()
  counted += 2 * scores.cost_analysis()["flops"]
  attention = 4 * 4 * 4 * (T * T - costs.seen_tokens(TINY, 0, T))
  assert costs.forward_flops(TINY, 0, T, 0) == 3 * (counted - attention)


def test_train_flops():
  forward = costs.forward_flops(TINY, 0, 9, 4)
  assert costs.train_flops(TINY, 9, 4) == 3 * forward
  adapted = dataclasses.replace(TINY, lora_rank=2, lora_targets=("q",))
  weights = 3 * 2 * 9 * (6 * 16 + 2 * 6 * 8 + 16 * 6 + 3 * 6 * 10) + 2 * 4 * 6 * 11
  adapters = 3 * 2 * 9 * 2 * (6 + 16)
  attention = forward - weights
  assert costs.train_flops(adapted, 9, 4) == 2 * weights + 3 * adapters + 3 * attention


def test_costs_of_experts_are_those_of_the_chosen_ones():
  """As a dense model of the width of two experts, and a router; memory as one of all five."""
  config = dataclasses.replace(TINY, **EXPERTS)
  chosen, all_ = (dataclasses.replace(TINY, intermediate_size=3 * count) for count in (2, 5))
  router = 3 * 6 * 5  # layers x hidden x experts
  columns = [dataclasses.replace(config, expert_product=how).mlp_columns for how in ("sorted", "all")]
  assert columns == [6, 15] and TINY.mlp_columns == 10
  assert costs.parameter_count(config) == costs.parameter_count(all_) + router
  assert costs.active_parameter_count(config) == costs.parameter_count(chosen) + router
  assert costs.active_parameter_count(TINY) == costs.parameter_count(TINY)
  assert costs.forward_flops(config, 2, 4, 3) == costs.forward_flops(chosen, 2, 4, 3) + 2 * 4 * router
  assert costs.train_flops(config, 9, 4) == costs.train_flops(chosen, 9, 4) + 6 * 9 * router
  adapted = {"lora_rank": 2, "lora_targets": ("q", "up", "down")}
  mine, like = (dataclasses.replace(one, **adapted) for one in (config, chosen))
  # Two experts' adapters have two A and two B each; the one wide matrix has one narrow side.
  more = 3 * 2 * 9 * 2 * (2 * (6 + 3 + 3 + 6) - 2 * (6 + 6))
  assert costs.train_flops(mine, 9, 4) == costs.train_flops(like, 9, 4) + 4 * 9 * router + 3 * more
  adapters = 3 * 2 * ((6 + 16) + 5 * 2 * (6 + 3))
  assert costs.state_bytes(mine)["optimizer"] == 8 * adapters
  for rows in (1, 4):  # experts that rows choose, by all equally likely choices of pairs out of five
    pairs = list(itertools.combinations(range(5), 2))
    expected = np.mean([len(set().union(*choice)) for choice in itertools.product(pairs, repeat=rows)])
    assert costs.expected_experts(config, rows) == pytest.approx(expected)
    wide = dataclasses.replace(TINY, intermediate_size=3)
    extra = 3 * (expected - 1) * 3 * 6 * 3 + router
    assert costs.weight_bytes(config, rows) == pytest.approx(costs.weight_bytes(wide, rows) + 2 * extra)
  assert costs.expected_experts(TINY, 4) == 0


def test_step_flops_of_one_group():
  """Phase by phase; the sampled trace costs what a teacher-forced pass over it would."""
  n = costs.Lengths(prompts=2, samples=3, prompt=4, trace=5, marker=1, answer=2)
  phases = costs.step_flops(TINY, n)
  assert phases["update"] == 6 * costs.train_flops(TINY, 12, 8)
  whole = costs.forward_flops(TINY, 0, 9, 5)
  assert phases["decode"] == pytest.approx(6 * (whole - costs.forward_flops(TINY, 0, 4, 0)))
  assert phases["score_answer"] == 6 * costs.forward_flops(TINY, 9, 2, 3)
  assert phases["score_empty_trace"] == 2 * costs.forward_flops(TINY, 4, 2, 3)


def test_bytes():
  """Llama-3.1-8B: 128 KiB of cache per token, 15 GB of weights to read for a token, 96 GB of state."""
  assert costs.cache_bytes_per_token(LLAMA_8B) == 131072
  n = costs.Lengths(prompts=1, samples=8, prompt=1000, trace=99, marker=1, answer=20)
  read = costs.decode_bytes(LLAMA_8B, rows=8, prompts=1, lengths=n)
  assert read["weights"] == 2 * (8_030_261_248 - 128256 * 4096 - 65 * 4096)  # no embedding, no norms
  assert read["prompt_cache"] == 1000 * 131072
  assert read["trace_cache"] == 8 * 50 * 131072  # half of 99, and the token itself
  state = costs.state_bytes(LLAMA_8B)
  assert state == {"params": 4 * 8_030_261_248, "optimizer": 8 * 8_030_261_248}
  adapted = costs.state_bytes(dataclasses.replace(LLAMA_8B, lora_rank=16, lora_targets=("q",)))
  adapters = 32 * 16 * (4096 + 4096)
  assert adapted == {"params": 2 * 8_030_261_248 + 4 * adapters, "optimizer": 8 * adapters}
