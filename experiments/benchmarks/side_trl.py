"""TRL's side of peers.py, in an environment with torch and trl: GRPOTrainer with a reward function.

In `verifier_free`, the reward function scores the reference answer by another forward pass of the same model over
prompt, trace, marker and answer. TRL has no loss term for the answer, so it is not trained here.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
import trl
import workload
from datasets import Dataset
from transformers import LlamaForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def even_share(completions, **_):
  """The reward of `grpo`."""
  return [workload.even_share(text) for text in completions]


def likelihood(model, tokenizer, sizes: workload.Sizes):
  """The reward of `verifier_free`: the geometric mean of the probabilities of the answer's tokens after the trace."""

  def reward(prompts, completion_ids, answer, **_):
    parts = zip(tokenizer(prompts)["input_ids"], completion_ids, answer)
    rows = [[*prompt, *trace, sizes.marker_id, *words] for prompt, trace, words in parts]
    width = max(len(row) for row in rows)
    token = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    keep = sizes.answer_length + 1  # the head runs on the marker and the answer only
    with torch.no_grad():
      logits = model(input_ids=token, attention_mask=mask, logits_to_keep=keep, use_cache=False).logits[:, :-1]
    target = token[:, -sizes.answer_length :, None]
    logp = torch.log_softmax(logits, -1).gather(-1, target)[..., 0]
    return logp.mean(1).exp().tolist()

  return reward


class Recorder(TrainerCallback):
  """Marks the end of each step and records its mean reward."""

  def __init__(self, clock: workload.Clock):
    self._clock = clock
    self.rewards = []

  def on_step_end(self, *_, **__):
    self._clock.step_ended()

  def on_log(self, *_, logs, **__):
    if "reward" in logs:
      self.rewards.append(logs["reward"])


def with_token_counts(reward, counts: list):
  """Wraps a reward function to also count the sampled tokens of each step."""

  def counted(completion_ids, **inputs):
    counts.append(sum(len(ids) for ids in completion_ids))
    return reward(completion_ids=completion_ids, **inputs)

  counted.__name__ = "reward"
  return counted


def load_model(path: str, end_id: int):
  model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
  for settings in (model.config, model.generation_config):
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = 0, 1, end_id
  return model


def trainer_config(args, sizes: workload.Sizes, steps: int) -> GRPOConfig:
  return GRPOConfig(
    output_dir=os.path.join(args.scratch, "trl"),
    use_cpu=True,
    bf16=False,
    fp16=False,
    per_device_train_batch_size=sizes.prompts * sizes.samples,
    gradient_accumulation_steps=1,
    num_generations=sizes.samples,
    max_completion_length=sizes.trace_length,
    max_steps=steps,
    learning_rate=workload.LEARNING_RATE,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    beta=0.0,
    num_iterations=1,
    loss_type="grpo",
    gradient_checkpointing=False,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    seed=0,
  )


def main(argv=None) -> None:
  args = workload.arguments(argv)
  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  sizes, steps, clock, tokens = workload.sizes_of(args), args.steps + 1, workload.Clock(), []
  model = load_model(args.model, sizes.end_id)
  prompts = workload.prompt_ids(sizes, steps)
  with torch.no_grad():
    workload.save_logits(args, "trl", model(torch.tensor(prompts[:2])).logits)
  columns = {"prompt": [workload.as_text(ids) for ids in prompts], "answer": workload.answer_ids(sizes, steps)}
  tokenizer = workload.make_tokenizer(sizes)
  reward = even_share if args.workload == "grpo" else likelihood(model, tokenizer, sizes)
  recorder = Recorder(clock)
  GRPOTrainer(
    model=model,
    reward_funcs=with_token_counts(reward, tokens),
    args=trainer_config(args, sizes, steps),
    train_dataset=Dataset.from_dict(columns),
    processing_class=tokenizer,
    callbacks=[recorder],
  ).train()
  versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
  workload.report("trl", args, clock, versions, tokens, recorder.rewards)


if __name__ == "__main__":
  main()
