"""NrtLM: lm-evaluation-harness asks, our compiled programs answer.

Texts become tokens as with the harness's Hugging Face backend, and the same weights give the same numbers. What is ours
alone: a model that writes traces is given room to think, and only what stands behind its marker is handed over.
"""

import json

import jax
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from nrt_jax.data import endings, foreign_texts, prompts
from nrt_jax.errors import UserError, require_choice, warn
from nrt_jax.harness import batching, stop_strings
from nrt_jax.harness.engine import Engine
from nrt_jax.harness.opening import Source, open_model
from nrt_jax.rollout.sampler import SamplingConfig

BATCH = 32  # rows at a time
NEW_TOKENS = 256  # of an answer whose task names no limit; as in the harness
SAMPLING = ("do_sample", "max_gen_toks", "temperature", "top_k", "top_p", "until")  # what a task may ask for


@register_model("nrt_jax")
class NrtLM(TemplateLM):
  """A model directory or a run's checkpoint as a model of the harness. `source`: see opening.Source.

  keep_traces: hands over trace and marker, too. batch_size: rows at a time, rounded up to what the devices share
  equally; "auto" is BATCH. seed: of sampled answers. max_batch_size, device: the harness fills them in for torch.
  """

  def __init__(self, batch_size=BATCH, keep_traces=False, seed=0, max_batch_size=None, device=None, **source):
    super().__init__()
    names = Source.__dataclass_fields__
    for name in source:
      require_choice("model_args", name, names)
    self.opened = open_model(Source(**source))
    self.tokenizer, self.keep_traces, self.seed = self.opened.tokenizer, bool(keep_traces), int(seed)
    self.engine = Engine(self.opened, BATCH if str(batch_size).startswith("auto") else int(batch_size))
    self.batch_size, self._texts = self.engine.size, None

  # ---- What the harness asks of a tokenizer ------------------------------------------------------------------------

  @property
  def eot_token_id(self) -> int:
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    bos = self.tokenizer.bos_token_id
    return self.eot_token_id if bos is None else bos

  @property
  def max_length(self) -> int:
    return self.opened.max_length

  @property
  def tokenizer_name(self) -> str:
    return str(self.tokenizer.name_or_path).replace("/", "__")

  def tok_encode(self, string: str, add_special_tokens=None, **_) -> list[int]:
    prefix = self.tokenizer.decode([self.prefix_token_id])
    return foreign_texts.encode(self.tokenizer, string, add_special_tokens, prefix)

  def apply_chat_template(self, chat_history, add_generation_prompt=True) -> str:
    options = dict(self.opened.prompt.template_options)
    return foreign_texts.render_history(self.tokenizer, options, chat_history, add_generation_prompt)

  def get_model_info(self) -> dict:
    """What results tell of the model, beside its arguments."""
    setup = self.opened.setup
    traces = {"max_trace_length": self.opened.trace_length, "keep_traces": self.keep_traces}
    format_ = endings.describe(self.tokenizer, setup.form) if self.opened.trace_length else None
    return {"model_dtype": setup.model.compute_dtype, "step": self.opened.step, **traces, "format": format_}

  # ---- Likelihoods -------------------------------------------------------------------------------------------------

  def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_) -> list[tuple[float, bool]]:
    pairs = [(context, continuation) for _, context, continuation in requests]
    for texts, _, continuation in requests:
      if not 1 <= len(continuation) <= self.max_length:
        text = continuation if texts is None else texts[1]
        found = f"continuation {text!r}: found {len(continuation)} tokens behind its context"
        raise UserError(f"{found}, allowed: 1 to {self.max_length}, the model's positions")
    self._warn([len(context) + len(continuation) for context, continuation in pairs], self.max_length + 1)
    found = [None] * len(pairs)
    bar = tqdm(total=len(pairs), disable=disable_tqdm, desc="Running loglikelihood requests")
    for number, *answer in self.engine.score(batching.gather(pairs, self.max_length)):
      found[number] = tuple(answer)
      if requests[number][0] is not None:
        self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
      bar.update(1)
    bar.close()
    return found

  def loglikelihood_rolling(self, requests, disable_tqdm=False) -> list[float]:
    windows = []  # (request, (None, context, continuation))
    for number, (text,) in enumerate(request.args for request in requests):
      ids = self.tok_encode(text)
      for pair in utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
        windows.append((number, (None, *utils.make_disjoint_window(pair))))
    scores = self._loglikelihood_tokens([window for _, window in windows], disable_tqdm)
    totals = [0.0] * len(requests)
    for (number, _), (logp, _) in zip(windows, scores):
      totals[number] += logp
    for request, total in zip(requests, totals):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return totals

  # ---- Completions -------------------------------------------------------------------------------------------------

  def generate_until(self, requests, disable_tqdm=False) -> list[str]:
    groups = {}  # what a task asks for, as text -> requests
    for number, request in enumerate(requests):
      groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
    texts = [None] * len(requests)
    bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests")
    for count, numbers in enumerate(groups.values()):
      asked = read_sampling(requests[numbers[0]].args[1])
      for number, ids in self._complete_group(requests, numbers, asked, count):
        texts[number] = self._text(ids, asked)
        self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        bar.update(1)
    bar.close()
    return texts

  def _complete_group(self, requests, numbers: list, asked: dict, group: int):
    """(request, token ids) of the completions of requests that ask for the same."""
    again = []
    for index, ids in self._complete([requests[n].args[0] for n in numbers], asked, group, self._stop_table(asked)):
      if self._ends_too_soon(ids, asked):
        again.append(numbers[index])
      else:
        yield numbers[index], ids
    for index, ids in self._complete([requests[n].args[0] for n in again], asked, group) if again else ():
      yield again[index], ids

  def _ends_too_soon(self, ids: list[int], asked: dict) -> bool:
    """Whether nothing but a stop string can have ended a completion, and there is none."""
    if len(ids) == self._new_tokens(asked) or prompts.has_ended(self.opened.form, ids):
      return False
    return not any(stop in (self._answer(ids, asked) or "") for stop in asked["until"])

  def _new_tokens(self, asked: dict) -> int:
    traces = self.opened.trace_length
    return asked["max_gen_toks"] + (traces + len(self.opened.form.marker_ids) if traces else 0)

  def _complete(self, contexts: list, asked: dict, group: int, table_SV=None):
    """(index, token ids) of each completion. Contexts lose their oldest tokens where they are too long."""
    traces, new_tokens = self.opened.trace_length, self._new_tokens(asked)
    room = self.max_length - new_tokens
    if room < 1:
      thinking = f" and {traces} of a trace" if traces else ""
      found = f"max_gen_toks: found {asked['max_gen_toks']}{thinking}"
      raise UserError(f"{found}, allowed: fewer than the model's {self.max_length} positions")
    sampling = SamplingConfig(new_tokens, asked["temperature"], asked["top_k"], asked["top_p"])
    rows = [[*(self.tok_encode(text) or [self.prefix_token_id]), *self._opens(text)] for text in contexts]
    self._warn(map(len, rows), room)
    rows = [row[-room:] for row in rows]
    key = jax.random.fold_in(jax.random.key(self.seed), group)
    return self.engine.complete(rows, sampling, key, table_SV)

  def _stop_table(self, asked: dict):
    """The table of a task's stop strings; None where nothing is cut off."""
    if not asked["until"] or (self.opened.trace_length and self.opened.form.answer_in == "completion"):
      return None
    if self._texts is None:
      self._texts = foreign_texts.texts_behind(self.tokenizer)
    marker_ids = self.opened.form.marker_ids if self.opened.trace_length else ()
    return stop_strings.build_table(self._texts, self.opened.setup.model.vocab_size, asked["until"], marker_ids)

  def _warn(self, lengths, room: int) -> None:
    """Says how many contexts lose tokens."""
    lengths = list(lengths)
    cut = sum(length > room for length in lengths)
    if cut:
      found = f"{cut} of {len(lengths)} contexts are longer than the model's {self.max_length} positions leave room for"
      warn(f"harness: {found}: their oldest tokens are lost")

  def _opens(self, text: str) -> list[int]:
    """The ids that open a trace behind a context; none where its template has opened one, or the model writes none."""
    opening = self.opened.prompt.trace_open if self.opened.trace_length else ""
    opened = not opening.strip() or text.rstrip().endswith(opening.strip())
    return [] if opened else self.tok_encode(opening, add_special_tokens=False)

  def _text(self, ids: list[int], asked: dict) -> str:
    """The answer of a completion, up to the first stop string; "" where a trace was never closed."""
    form, answer = self.opened.form, self._answer(ids, asked)
    if self.opened.trace_length and form.answer_in == "completion":  # where the answer stands in it, the task will find
      return answer
    cut = postprocess_generated_text(answer or "", asked["until"], None)
    if not self.opened.trace_length or not self.keep_traces:
      return cut
    trace_ids, _ = prompts.split_completion(form, ids)
    return prompts.decode(self.tokenizer, [*trace_ids, *(() if answer is None else form.marker_ids)]) + cut

  def _answer(self, ids: list[int], asked: dict) -> str | None:
    """The answer before it is cut at a stop string; None where a trace was never closed."""
    if not self.opened.trace_length:
      return foreign_texts.decode(self.tokenizer, ids)
    _, answer_ids = prompts.split_completion(self.opened.form, ids)
    if answer_ids is None or self.opened.form.answer_in == "completion":
      return answer_ids and foreign_texts.decode(self.tokenizer, answer_ids)
    return foreign_texts.decode(self.tokenizer, answer_ids[: asked["max_gen_toks"]]).lstrip()


def read_sampling(asked: dict) -> dict:
  """What a task asks of its completions, every key of SAMPLING set. UserError for what our sampler does not do."""
  found = normalize_gen_kwargs(asked, NEW_TOKENS)
  for name in found:
    require_choice("generation_kwargs", name, SAMPLING)
  return {
    "until": [text for text in found["until"] if text],
    "max_gen_toks": found["max_gen_toks"],
    "temperature": float(found.get("temperature") or 0.0) if found["do_sample"] else 0.0,
    "top_k": int(found.get("top_k") or 0),
    "top_p": float(found.get("top_p") or 1.0),
  }
