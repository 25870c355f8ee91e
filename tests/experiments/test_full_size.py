"""The full-size files: their values are the papers' and their programs lower, on abstract values without weights."""

import json
import re

import chats
import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from paths import EXPERIMENTS

from nrt_jax import config, sharding
from nrt_jax.commands.configs import load_config
from nrt_jax.data import batches, prompts
from nrt_jax.step import host_grading, opening, policy, programs, sizes

FILES = EXPERIMENTS / "full_size"
SPECIAL = ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>")


# ---- Architectures: the numbers of the public config.json of each model, and how many parameters it has -------------


def llama(**over) -> dict:
  """Llama-3-8B; table 3 of the Llama 3 report, arXiv 2407.21783."""
  return {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, **over,
  }  # fmt: skip


def qwen(**over) -> dict:
  """Qwen2.5-7B; table 1 of its report, arXiv 2412.15115."""
  return {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 152064, "hidden_size": 3584,
    "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, **over,
  }  # fmt: skip


ROPE_31 = {
  "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}  # fmt: skip
ARCHITECTURES = {
  "Llama-3.1-8B": (llama(max_position_embeddings=131072, rope_scaling=ROPE_31), 8_030_261_248),
  "Llama-3-8B": (llama(), 8_030_261_248),
  "Qwen2.5-7B": (qwen(), 7_615_616_512),
  "Qwen2.5-Math-7B": (qwen(max_position_embeddings=4096, rope_theta=10000.0), 7_615_616_512),
  "Qwen2.5-32B": (
    qwen(
      hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40, num_key_value_heads=8
    ),
    32_763_876_352,
  ),
  "Qwen3-1.7B": (
    qwen(
      model_type="qwen3", architectures=["Qwen3ForCausalLM"], vocab_size=151936, hidden_size=2048, head_dim=128,
      intermediate_size=6144, num_attention_heads=16, num_key_value_heads=8, max_position_embeddings=32768,
      attention_bias=False, tie_word_embeddings=True,
    ),
    1_720_574_976,
  ),
  "Qwen2.5-14B": (  # R1-Distill-Qwen-14B's too
    qwen(
      hidden_size=5120, intermediate_size=13824, num_hidden_layers=48, num_attention_heads=40, num_key_value_heads=8
    ),
    14_770_033_664,
  ),
  "Mistral-7B": (  # arXiv 2310.06825, table 1
    llama(
      model_type="mistral", architectures=["MistralForCausalLM"], vocab_size=32000, max_position_embeddings=32768,
      rope_theta=10000.0, sliding_window=4096,
    ),
    7_241_732_096,
  ),
  "OLMo-2-1B": (  # OLMo-2-0425-1B
    llama(
      model_type="olmo2", architectures=["Olmo2ForCausalLM"], vocab_size=100352, hidden_size=2048,
      intermediate_size=8192, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16,
      max_position_embeddings=4096, rms_norm_eps=1e-6,
    ),
    1_484_916_736,
  ),
  "Qwen3-8B": (
    qwen(
      model_type="qwen3", architectures=["Qwen3ForCausalLM"], vocab_size=151936, hidden_size=4096, head_dim=128,
      intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
      max_position_embeddings=32768, attention_bias=False,
    ),
    8_190_735_360,
  ),
}  # fmt: skip

# ---- What the papers say, written down from the specification and not from the files ---------------------------------
# file -> (model, chips of its mesh, {key: value})

VERL_RATE = {"optimizer.learning_rate": 1e-6, "optimizer.schedule": "constant", "sampling.temperature": 1.0}
JEPO = {  # nrt.md 7.1
  "prompts_per_step": 64, "samples_per_prompt": 4, "sampling.temperature": 1.0, "sampling.top_p": 1.0,
  "algorithm.reward": "log_prob", "algorithm.advantage_clip": 1.0, "algorithm.scale": "advantage_std",
  "algorithm.format_penalty": 10.0, "algorithm.unmarked": "mask", "algorithm.kl_coef": 1e-3,
}  # fmt: skip
NFT_SETTING = {  # nft_and_get_go.md 1.5
  **VERL_RATE, "total_steps": 320, "prompts_per_step": 512, "samples_per_prompt": 16, "prompt.max_prompt_length": 512,
  "sampling.max_trace_length": 4096 - 512, "sampling.top_p": 1.0, "optimizer.minibatches": 512 // 32,
  "optimizer.warmup_steps": 10, "optimizer.weight_decay": 0.1, "optimizer.max_grad_norm": 1.0,
  "algorithm.kl_coef": 0.0, "algorithm.entropy_coef": 0.0, "algorithm.reference": "none", "algorithm.long_buffer": 0,
  "evaluation.temperature": 0.6,
}  # fmt: skip
NRT = {  # nrt.md 4
  "prompts_per_step": 256, "samples_per_prompt": 8, "total_steps": 810, "optimizer.learning_rate": 2e-6,
  "optimizer.warmup_ratio": 0.1, "optimizer.beta2": 0.95, "optimizer.eps": 1e-15, "optimizer.minibatches": 256 // 64,
  "prompt.max_prompt_length": 4096, "sampling.max_trace_length": 2048, "algorithm.clip_low": 0.8,
  "algorithm.clip_high": 1.28, "algorithm.format_coef": 0.3, "algorithm.scale": "std",
}  # fmt: skip
DAPO = {
  "algorithm.clip_low": 0.8, "algorithm.clip_high": 1.28, "algorithm.normalisation": "token",
  "algorithm.filter_flat_groups": True, "algorithm.mask_unended": False, "algorithm.wrong_reward": -1.0,
  "algorithm.max_draws": 10 * 1536 // 512,
}  # fmt: skip
RARO = {  # raro.md 2
  "samples_per_prompt": 16, "sampling.max_trace_length": 2048, "optimizer.learning_rate": 1e-6,
  "algorithm.kl_coef": 1e-3, "algorithm.tau_policy": 0.6, "algorithm.tau_critic": 0.55,
  "algorithm.lambda_policy": 1 / 9, "algorithm.lambda_critic": 8 / 9, "algorithm.replay_share": 0.5,
  "algorithm.replay_size": 10_000, "algorithm.scale": "none", "algorithm.normalisation": "constant",
  "algorithm.mask_unended": True, "optimizer.minibatches": 1, "algorithm.critic.kind": "pairwise_tie",
  "algorithm.critic.reasoning": True,
}  # fmt: skip
FULL_SIZE = {
  "raro_qwen25_countdown": ("Qwen2.5-7B", 64, RARO),
  "raro_qwen25_deepmath": ("Qwen2.5-7B", 64, {**RARO, "data.answer_column": "final_answer"}),
  "raro_qwen25_poetry": ("Qwen2.5-7B", 64, RARO),
  "nrt_llama31_8b_tulu3": (
    "Llama-3.1-8B", 64, {**NRT, "algorithm.baseline": "none", "algorithm.answer_weight": "one"},
  ),
  "nrt_paper_llama31_8b_tulu3": (
    "Llama-3.1-8B", 64, {**NRT, "algorithm.baseline": "subtract_and_clip", "algorithm.answer_weight": "derived"},
  ),
  "jepo_llama3_8b_math": (
    "Llama-3-8B", 64,
    {**JEPO, "algorithm.center": "multi_sample", "algorithm.answer_weight": "group_softmax",
     "algorithm.answer_coef": 0.01},
  ),
  "jepo_llama3_8b_numina_proof": ("Llama-3-8B", 64, {**JEPO, "algorithm.answer_coef": 1.0}),
  "verifree_qwen3_8b": (  # nrt.md 7.2
    "Qwen3-8B", 16,
    {**VERL_RATE, "prompts_per_step": 16, "samples_per_prompt": 8, "total_steps": 3000, "optimizer.minibatches": 1,
     "sampling.max_trace_length": 3000, "sampling.top_p": 1.0, "algorithm.reward": "prob", "algorithm.kl_coef": 0.0,
     "algorithm.center": "leave_one_out", "algorithm.scale": "none", "algorithm.unmarked": "zero",
     "algorithm.answer_weight": "derived", "algorithm.normalisation": "constant"},
  ),
  "rlpr_qwen25_7b": (  # nrt.md 7.3
    "Qwen2.5-7B", 64,
    {"optimizer.learning_rate": 1e-6, "prompts_per_step": 768, "optimizer.minibatches": 768 // 192,
     "samples_per_prompt": 8, "prompt.max_prompt_length": 2048, "sampling.max_trace_length": 3072,
     "algorithm.reward": "arithmetic_mean", "algorithm.baseline": "subtract_and_clip",
     "algorithm.base_policy": "reference", "algorithm.reference": "frozen", "algorithm.clip_low": 1 - 0.2,
     "algorithm.clip_high": 1.27, "algorithm.kl_coef": 0.0, "algorithm.format_share": 0.1, "algorithm.std_filter": 0.5,
     "algorithm.std_filter_start": 11, "algorithm.std_average_start": 6, "algorithm.std_average_decay": 0.99,
     "algorithm.repetition_penalty": 1.0, "algorithm.repetition_ngram": 10, "algorithm.repetition_times": 10},
  ),
  "rlp_qwen3_17b": (  # nft_and_get_go.md 3.2
    "Qwen3-1.7B", 16,
    {"prompts_per_step": 512, "samples_per_prompt": 16, "optimizer.learning_rate": 1e-6,
     "optimizer.schedule": "constant", "sampling.temperature": 0.7, "sampling.max_trace_length": 2048,
     "prompt.max_prompt_length": 2048, "data.horizon": 1, "algorithm.reference": "moving_average",
     "algorithm.reference_decay": 0.999, "algorithm.reward": "log_prob", "algorithm.baseline": "subtract",
     "algorithm.base_policy": "reference", "algorithm.base_place": "prompt", "algorithm.center": "leave_one_out",
     "algorithm.scale": "none", "algorithm.answer_weight": "none", "algorithm.normalisation": "sequence",
     "algorithm.kl_coef": 0.0},
  ),
  "rpt_r1_distill_qwen_14b": (  # 3.1
    "Qwen2.5-14B", 64,
    {"prompts_per_step": 256, "samples_per_prompt": 8, "total_steps": 1000, "optimizer.learning_rate": 1e-6,
     "sampling.temperature": 0.8, "sampling.max_trace_length": 8192, "algorithm.kl_coef": 0.0,
     "algorithm.verifier": "token_prefix", "algorithm.wrong_reward": 0.0},
  ),
  "quiet_star_filter_mistral_7b": (  # 3.3
    "Mistral-7B", 16,
    {"optimizer.learning_rate": 1e-6, "sampling.temperature": 1.0, "prompt.max_prompt_length": 256,
     "data.horizon": 12, "environment.tokens": 24, "algorithm.positive_only": True, "algorithm.center": "mean",
     "algorithm.scale": "none", "algorithm.answer_weight": "one", "algorithm.trace_loss": "reinforce"},
  ),
  "early_rl_olmo2_1b": (  # 3.8
    "OLMo-2-1B", 16, {"data.source": "hub:nvidia/OpenMathInstruct-1", "algorithm.wrong_reward": 0.0},
  ),
  "nft_qwen25_math_7b": (
    "Qwen2.5-Math-7B", 64,
    {**{key: value for key, value in NFT_SETTING.items() if key != "algorithm.long_buffer"},
     "algorithm.prompt_weight": "negative_rate", "algorithm.negative_weight": 1.0, "algorithm.floor": 1.0,
     "algorithm.ratio": "token",
     "algorithm.normalisation": "constant", "algorithm.normalisation_constant": 1000.0,
     "algorithm.filter_flat_groups": True, "algorithm.mask_unended": False, "algorithm.max_draws": 10 * 1536 // 512},
  ),
  "grpo_qwen25_math_7b": (
    "Qwen2.5-Math-7B", 64,
    {**NFT_SETTING, "algorithm.center": "mean", "algorithm.scale": "std", "algorithm.trace_loss": "ppo_clip",
     "algorithm.clip_low": 0.8},
  ),
  "dapo_qwen25_math_7b": ("Qwen2.5-Math-7B", 64, {**NFT_SETTING, **DAPO}),
  "dapo_qwen25_32b": (
    "Qwen2.5-32B", 256,
    {**VERL_RATE, **DAPO, "prompts_per_step": 512, "samples_per_prompt": 16, "optimizer.minibatches": 16,
     "prompt.max_prompt_length": 2048, "sampling.max_trace_length": 20480, "algorithm.long_buffer": 4096,
     "algorithm.long_penalty": 1.0, "optimizer.warmup_steps": 10, "optimizer.weight_decay": 0.1,
     "algorithm.kl_coef": 0.0},
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZE)
def test_values_are_the_papers(name):
  (run,) = config.stages_of(load_config(str(FILES / f"{name}.py")))
  for key, expected in FULL_SIZE[name][2].items():
    value = run
    for part in key.split("."):
      value = getattr(value, part)
    assert value == pytest.approx(expected, rel=1e-12) if isinstance(expected, float) else value == expected, key


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_value_has_its_source(name):
  """On its line or in the comment right above: a source's tag, "unknown", or that the user gives it."""
  lines = (FILES / f"{name}.py").read_text().splitlines()
  assignments = [
    (line, before) for before, line in zip(lines, lines[1:]) if re.match(r"  [a-z_]+\.[a-z_.]+ = |  shared\.", line)
  ]
  assert assignments
  for line, before in assignments:
    comment = line.partition("#")[2] or (before if before.strip().startswith("#") else "")
    assert re.search(r"\[\w+\]|unknown|given by the user|NVlabs", comment), line


# ---- Programs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict:
  """Model -> a directory of it without weights, and with a small tokenizer that has the families' chat tokens."""
  root = tmp_path_factory.mktemp("models")
  for name, (values, _) in ARCHITECTURES.items():
    (root / name).mkdir()
    tokenizer = prompts.byte_pair_tokenizer(["a tokenizer"], 300, special=SPECIAL)
    tokenizer.bos_token, tokenizer.chat_template = "<s>", None if name.startswith("llama") else chats.CHATML
    tokenizer.save_pretrained(root / name)
    (root / name / "config.json").write_text(json.dumps(values))
  return {name: str(root / name) for name in ARCHITECTURES}


def read_setup(name: str, directories: dict, make_mesh, overrides=()) -> programs.Setup:
  overrides = [f"--config.model.path={directories[FULL_SIZE[name][0]]}", *overrides]
  (run,) = config.stages_of(load_config(str(FILES / f"{name}.py"), overrides))
  tokenizer, form = policy.open_tokenizer(run.model, run.prompt)
  model = policy.read_architecture(run.model, form, run.parallel.tensor)
  return opening.open_setup(run, model, tokenizer, form, make_mesh(run.parallel))


def abstract_prompts(setup: programs.Setup):
  prompt = setup.run.prompt
  widths = (prompt.max_prompt_length, prompt.max_answer_length, setup.run.data.max_trace_length)
  one = batches.pack([[0]], [[0]], [[]], [0], widths, setup.form.pad_id)
  if setup.critic is not None:
    head = np.zeros((1, setup.critic.head_width), np.int32)
    one = one.replace(hint_BQ=head, hint_length_B=head[:, 0])
  count = setup.run.prompts_per_step * setup.max_draws
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype), one)


AS_GRPO = ("early_rl_olmo2_1b", "rpt_r1_distill_qwen_14b")  # their programs are grpo's, of another model


def shapes_of(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("name", [name for name in FULL_SIZE if name not in AS_GRPO])
def test_program_lowers(name, directories):
  """On eight devices instead of a slice; every other value is the file's own."""
  setup = read_setup(name, directories, sharding.make_mesh, ["--config.parallel.fsdp=4", "--config.parallel.tensor=2"])
  sizes.check(setup)
  states = programs.abstract_states(setup)
  count = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(states.policy.params))
  tables = 1 if setup.model.tie_word_embeddings else 2
  count -= tables * setup.model.vocab_padding * setup.model.hidden_size
  assert count == ARCHITECTURES[FULL_SIZE[name][0]][1]
  with jax.set_mesh(setup.mesh):
    *before, lowered = host_grading.lower_programs(setup, states, abstract_prompts(setup))
  assert len(before) == setup.grades_on_host  # the completions that a grader on the host is given
  new_states, metrics, samples = lowered.out_info
  assert shapes_of(new_states) == shapes_of(states)
  graded = "completion/accuracy" if hasattr(setup.run.algorithm, "verifier") else "answer/logp_gain"
  assert ("critic/accuracy" if setup.critic is not None else graded) in metrics
  assert samples["trace"].shape[1] == setup.run.sampling.max_trace_length
  text = lowered.as_text()
  assert text.count("stablehlo.while") < 80  # the layers are scanned, not written out one by one; RLPR has the most, 60
  assert len(text) < 2_000_000


@pytest.mark.parametrize("name", FULL_SIZE)
def test_fits_its_own_mesh(name, directories):
  """Devices that don't exist: every size divides as the file's mesh wants it."""

  def make_mesh(parallel):
    chips = FULL_SIZE[name][1]
    return AbstractMesh((chips // parallel.fsdp // parallel.tensor, parallel.fsdp, parallel.tensor), sharding.MESH_AXES)

  setup = read_setup(name, directories, make_mesh)
  sizes.check(setup)
  largest = max(jax.tree.leaves(programs.state_shardings(setup).policy.params), key=lambda s: len(set(s.spec)))
  assert {"fsdp", "tensor"} <= set(largest.spec)


def test_any_special_token_ends_a_trace_of_the_released_code_only(directories):
  names = ("nrt_llama31_8b_tulu3", "nrt_paper_llama31_8b_tulu3")
  released, paper = (read_setup(name, directories, lambda parallel: None) for name in names)
  assert released.run.optimizer == paper.run.optimizer and released.run.sampling == paper.run.sampling
  assert len(released.form.stop_ids) > len(paper.form.stop_ids)


def test_baselines_share_nfts_setting():
  """One setting, three methods: whatever is no part of the algorithm is the same."""
  runs = [
    config.stages_of(load_config(str(FILES / f"{name}_qwen25_math_7b.py")))[0] for name in ("nft", "grpo", "dapo")
  ]
  for key in ("data", "prompt", "sampling", "optimizer", "evaluation", "prompts_per_step", "samples_per_prompt"):
    assert len({getattr(run, key) for run in runs}) == 1, key
