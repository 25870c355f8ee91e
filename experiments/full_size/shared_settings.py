"""What the full-size files share: a slice of accelerators, DAPO-Math, the optimizer of verl. No run by itself.

Every value here is [ours] or has its source beside it, as in the files that call these functions.
"""


def on_a_slice(config, fsdp: int, tensor: int, micro_batches: int) -> None:
  """bfloat16 on `fsdp` x `tensor` devices and any multiple of them; all of it is [ours]."""
  config.model.path = None  # given by the user
  config.model.compute_dtype = "bfloat16"  # float32 master weights
  config.model.remat = "full"
  config.model.layer_loop = "scan"  # a program of one layer, not of all
  config.parallel.data = -1
  config.parallel.fsdp = fsdp
  config.parallel.tensor = tensor
  config.parallel.micro_batches = micro_batches


def verl_adamw(config, learning_rate: float) -> None:
  """AdamW as verl's configs have it where a script says no more; the rate is the caller's."""
  optimizer = config.optimizer
  optimizer.name = "adamw"
  optimizer.learning_rate = learning_rate
  optimizer.schedule = "constant"
  optimizer.beta1 = 0.9  # unknown in all papers here; torch's default, as the next two
  optimizer.beta2 = 0.999
  optimizer.eps = 1e-8
  optimizer.weight_decay = 0.01  # unknown; verl's default
  optimizer.max_grad_norm = 1.0  # unknown; verl's default


def dapo_math(config) -> None:
  """DAPO-Math-17k: integer answers. Whole completions are graded, since base models box their answers."""
  data = config.data
  # [ours] each question once, and without an instruction around it; the original is BytedTsinghua-SIA/DAPO-Math-17k.
  data.source = "hub:open-r1/DAPO-Math-17k-Processed:all"
  data.split = "train"
  data.question_column = "prompt"
  data.answer_column = "solution"

  prompt = config.prompt
  prompt.answer_in = "completion"
  prompt.marker = "<|fim_pad|>"  # [ours] a token that Qwen2.5 has and never writes: nothing is read behind it
  prompt.max_answer_length = 32  # [ours] columns for the reference alone; completions have sampling.max_trace_length
  prompt.overlong_answer = "drop"
  config.algorithm.verifier = "math"  # on the host; the papers': string match of the normalised box or answer line
