"""Settings that the full-size files share: a slice of accelerators, DAPO-Math, verl's optimizer. Not a run itself.

Every value is [ours] or has its source next to it, as in the files that call these functions.
"""

import pathlib


def on_a_slice(config, fsdp: int, tensor: int, micro_batches: int) -> None:
  """bfloat16 on `fsdp` x `tensor` devices, or any multiple of them. All values are [ours]."""
  config.model.path = None  # given by the user
  config.model.compute_dtype = "bfloat16"  # float32 master weights
  config.model.remat = "full"
  config.model.layer_loop = "scan"  # compiles one layer, not all
  config.parallel.data = -1
  config.parallel.fsdp = fsdp
  config.parallel.tensor = tensor
  config.parallel.micro_batches = micro_batches


def llama3_chat(config) -> None:
  """Llama 3's turns: the base models have no chat template of their own. [ours]"""
  config.prompt.template = "chat"
  config.prompt.chat_template = str(pathlib.Path(__file__).with_name("llama3.jinja"))


def verl_adamw(config, learning_rate: float) -> None:
  """AdamW with verl's defaults and the caller's learning rate, for whatever a script does not set."""
  optimizer = config.optimizer
  optimizer.name = "adamw"
  optimizer.learning_rate = learning_rate
  optimizer.schedule = "constant"
  optimizer.beta1 = 0.9  # unknown in all papers here; torch's default, like the next two
  optimizer.beta2 = 0.999
  optimizer.eps = 1e-8
  optimizer.weight_decay = 0.01  # unknown; verl's default
  optimizer.max_grad_norm = 1.0  # unknown; verl's default


def dapo_math(config) -> None:
  """DAPO-Math-17k: integer answers. Grades whole completions, since base models box their answers."""
  data = config.data
  # [ours] deduplicated, and without instructions; the original is BytedTsinghua-SIA/DAPO-Math-17k.
  data.source = "hub:open-r1/DAPO-Math-17k-Processed:all"
  data.split = "train"
  data.question_column = "prompt"
  data.answer_column = "solution"

  prompt = config.prompt
  prompt.answer_in = "completion"
  prompt.marker = "<|fim_pad|>"  # [ours] a Qwen2.5 token that is never written; nothing after it is read
  prompt.max_answer_length = 32  # [ours] for the reference only; completions use sampling.max_trace_length
  prompt.overlong_answer = "drop"
  config.algorithm.verifier = "math"  # on the host; the papers match the normalized box or answer line as text
