import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy

from nrt_jax.errors import UserError
from nrt_jax.evaluation.held_out import EvaluationConfig
from nrt_jax.model.decoder import decoding_params, forward, logits
from nrt_jax.rollout import sampler
from nrt_jax.rollout.sampler import SamplingConfig, cache_sizes, choose
from nrt_jax.step import programs

SAMPLES, R = 4, 8


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def run(model, config, stop_ids, pad_id, params, prompts, key):
  weights = decoding_params(params, model)
  return sampler.sample(weights, model, config, stop_ids, pad_id, prompts, key, SAMPLES)[0]


def sample(config=SamplingConfig(max_trace_length=R), stop_ids=(toy.MARKER, toy.EOS), pad_id=toy.PAD, prompts=None,
           key=0, model=toy.MODEL):  # fmt: skip
  prompts = toy.prompts(6) if prompts is None else prompts
  return run(model, config, stop_ids, pad_id, toy.params(model), prompts, jax.random.key(key))


@pytest.fixture(scope="module")
def rollouts():
  return sample()


def row_text(prompts, rollouts, n):
  """Prompt and sampled tokens of row n as one list, and the length of the prompt."""
  b = n // SAMPLES
  prompt = prompts.prompt_BP[b][prompts.prompt_BP.shape[1] - prompts.prompt_length_B[b] :]
  return [*prompt.tolist(), *np.asarray(rollouts.token_NR[n][: rollouts.length_N[n]]).tolist()], len(prompt)


@jax.jit
def next_logits(params, text_1T, length):
  """Logits behind the first `length` tokens: no cache, one whole row."""
  column = jnp.arange(text_1T.shape[1])[None]
  hidden, _ = forward(params, toy.MODEL, text_1T, jnp.where(column < length, column, -1))
  return logits(params, toy.MODEL, hidden)[0, length - 1]


def logits_along(text, start):
  """Next-token logits before each of text[start:], each from a pass that does not hold the token itself."""
  padded = jnp.asarray([text + [0] * (5 + R - len(text))], jnp.int32)
  return np.stack([next_logits(toy.params(), padded, t) for t in range(start, len(text))])


def test_what_a_rollout_says(rollouts):
  """Lengths, ends and padding are consistent, and the batch has traces of every kind."""
  token, length = np.asarray(rollouts.token_NR), np.asarray(rollouts.length_N)
  stop = np.isin(token, (toy.MARKER, toy.EOS)) & (np.arange(R)[None] < length[:, None])
  np.testing.assert_array_equal(rollouts.ended_N, stop.any(-1))
  for n in range(len(length)):
    assert (token[n, length[n] :] == toy.PAD).all() and not rollouts.logp_NR[n, length[n] :].any()
    assert not stop[n, : length[n] - 1].any()  # only the last token stops
    assert length[n] == R or stop[n, length[n] - 1]
    assert rollouts.marker_N[n] == (token[n, length[n] - 1] == toy.MARKER)
  assert rollouts.marker_N.any() and (~rollouts.ended_N).any() and (rollouts.ended_N & ~rollouts.marker_N).any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_by_whole_rows(temperature):
  """Each token's log-probability, the stop token's included, from a forward without cache at that temperature."""
  prompts = toy.prompts(6)
  rollouts = sample(SamplingConfig(max_trace_length=R, temperature=temperature))
  ended = np.flatnonzero(rollouts.ended_N)
  assert len(ended)
  for n in {0, 5, 9, *ended[:4].tolist()}:
    text, start = row_text(prompts, rollouts, n)
    along = logits_along(text, start) / temperature
    expected = [np.log(reference.softmax(x))[token] for x, token in zip(along, text[start:], strict=True)]
    np.testing.assert_allclose(rollouts.logp_NR[n, : len(expected)], expected, atol=1e-4)


def test_greedy_is_argmax_without_cache():
  prompts = toy.prompts(6)
  rollouts = sample(SamplingConfig(max_trace_length=R, temperature=0.0))
  for n in range(0, 6 * SAMPLES, SAMPLES):
    text, start = row_text(prompts, rollouts, n)
    np.testing.assert_array_equal(logits_along(text, start).argmax(-1), text[start:])
    np.testing.assert_array_equal(rollouts.token_NR[n], rollouts.token_NR[n + 1])  # all samples of a prompt are one


def cut_at_stop(token_R, stop_ids):
  """Length and tokens of an endless trace cut behind its first stop token."""
  places = [i for i, token in enumerate(token_R.tolist()) if token in stop_ids]
  length = places[0] + 1 if places else len(token_R)
  return length, token_R[:length], bool(places)


def test_stop_token_first_absent_and_repeated():
  """Trap 6. Any stop set only cuts the endless traces of the same keys, wherever the stop token stands in them."""
  endless = np.asarray(sample(stop_ids=(toy.PAD,), pad_id=0).token_NR)  # a stop token that hardly occurs
  endless_rows = [n for n in range(len(endless)) if toy.PAD not in endless[n]]
  ids, counts = np.unique(endless[endless_rows], return_counts=True)
  stop = int(ids[counts.argmax()])
  kinds = set()
  for stop_ids in [(stop,), (int(endless[endless_rows[0], 0]), stop)]:
    got = sample(stop_ids=stop_ids, pad_id=0)
    for n in endless_rows:
      length, tokens, ended = cut_at_stop(endless[n], stop_ids)
      assert (got.length_N[n], got.ended_N[n]) == (length, ended)
      np.testing.assert_array_equal(got.token_NR[n], np.pad(tokens, (0, R - length)))
      assert got.marker_N[n] == (ended and tokens[-1] == stop_ids[0])
      repeated = np.isin(endless[n], stop_ids).sum() > 1
      kinds |= {"first"} if ended and length == 1 else {"absent"} if not ended else {"repeated"} if repeated else set()
  assert kinds == {"first", "absent", "repeated"}


def test_pad_token_may_be_a_stop_token(rollouts):
  """Qwen and many others pad with their end token; lengths, never ids, say what is valid (trap 14)."""
  got = sample(pad_id=toy.EOS)
  for name in ("length_N", "ended_N", "marker_N", "logp_NR"):
    np.testing.assert_array_equal(getattr(got, name), getattr(rollouts, name))
  valid = np.arange(R)[None] < np.asarray(rollouts.length_N)[:, None]
  np.testing.assert_array_equal(got.token_NR, np.where(valid, rollouts.token_NR, toy.EOS))


def take(prompts, rows):
  return jax.tree.map(lambda a: a[np.asarray(rows)], prompts)


def test_a_row_does_not_depend_on_its_batch(rollouts):
  """The same tokens alone, in another order, and beside other prompts."""
  prompts = toy.prompts(6)
  order = [3, 0, 5, 1, 4, 2]
  strangers = jax.tree.map(lambda mine, other: np.concatenate([mine[2:3], other[:5]]), prompts, toy.prompts(6, seed=9))
  strangers = strangers.replace(example_B=np.array([102, 1, 2, 3, 4, 5], np.int32))
  for other, rows in ((take(prompts, order), order), (take(prompts, [4]), [4]), (strangers, [2])):
    got = sample(prompts=other)
    for place, b in enumerate(rows):
      mine, its = slice(b * SAMPLES, (b + 1) * SAMPLES), slice(place * SAMPLES, (place + 1) * SAMPLES)
      np.testing.assert_array_equal(got.token_NR[its], rollouts.token_NR[mine])
      np.testing.assert_allclose(got.logp_NR[its], rollouts.logp_NR[mine], atol=1e-5)


def test_prompt_padding(rollouts):
  prompts = toy.prompts(6)
  wider = prompts.replace(prompt_BP=np.pad(prompts.prompt_BP, ((0, 0), (3, 0)), constant_values=5))
  np.testing.assert_array_equal(sample(prompts=wider).token_NR, rollouts.token_NR)


@pytest.mark.parametrize("stages,loop", [(3, "unroll"), (R, "scan")])
def test_cache_that_grows(rollouts, stages, loop):
  config = SamplingConfig(max_trace_length=R, cache_stages=stages)
  got = sample(config, model=dataclasses.replace(toy.MODEL, layer_loop=loop))
  np.testing.assert_array_equal(got.token_NR, rollouts.token_NR)
  np.testing.assert_allclose(got.logp_NR, rollouts.logp_NR, atol=1e-4)


def test_cache_sizes():
  assert cache_sizes(10, 1) == [10]
  assert cache_sizes(10, 4) == [3, 5, 8, 10]
  assert cache_sizes(2, 5) == [1, 2]


def test_keys(rollouts):
  """Same key, same tokens (trap 13); another key, and another example number, other tokens; samples differ."""
  np.testing.assert_array_equal(sample().token_NR, rollouts.token_NR)
  assert (np.asarray(sample(key=1).token_NR) != rollouts.token_NR).any(-1).mean() > 0.9
  renumbered = toy.prompts(6).replace(example_B=np.arange(6, dtype=np.int32))
  assert (np.asarray(sample(prompts=renumbered).token_NR) != rollouts.token_NR).any(-1).mean() > 0.9
  groups = np.asarray(rollouts.token_NR).reshape(6, SAMPLES, R)
  assert all(len(np.unique(group, axis=0)) > 1 for group in groups)


@pytest.mark.parametrize("make", [
  lambda value: SamplingConfig(temperature=value), lambda value: EvaluationConfig(temperature=value),
])  # fmt: skip
def test_temperatures_that_logits_cannot_be_divided_by_are_refused(make):
  for value in (1e-7, 1e-300, -1.0, float("nan")):
    with pytest.raises(UserError, match="(sampling|evaluation).temperature: found .*, allowed: 0 .greedy., or 1e-06 or"):
      make(value)
  assert make(0.0).temperature == 0 and make(1e-6).temperature == 1e-6


def test_the_lowest_temperature_is_greedy_and_finite():
  got, greedy = (sample(SamplingConfig(max_trace_length=R, temperature=value)) for value in (1e-6, 0.0))
  np.testing.assert_array_equal(got.token_NR, greedy.token_NR)
  assert np.isfinite(got.logp_NR).all()


@pytest.mark.parametrize("stop_ids,steps", [(tuple(range(toy.VOCAB)), 1), ((toy.MARKER, toy.EOS), R)])
def test_early_exit(monkeypatch, stop_ids, steps):
  """The loop runs once where every first token stops, and as long as the longest trace otherwise."""
  seen = []

  def watched(logits_NV, uniform_N, config):
    jax.debug.callback(lambda u: seen.append(u.size), uniform_N)
    return choose(logits_NV, uniform_N, config)

  monkeypatch.setattr(sampler, "choose", watched)
  config = SamplingConfig(max_trace_length=R, temperature=1.0 + 1e-6)  # its own entry in the cache of programs
  got = sample(config, stop_ids=stop_ids)
  jax.effects_barrier()
  assert len(seen) == steps and int(got.length_N.max()) == steps


def test_settings_of_a_later_program_count():
  """Trap 7: a program cached without its settings would answer the second call with the first call's temperature."""
  setup = toy.setup()
  settings = [
    SamplingConfig(max_trace_length=R, temperature=0.0),
    SamplingConfig(max_trace_length=R, temperature=2.0),
    SamplingConfig(max_trace_length=R, temperature=2.0, top_k=2),
    SamplingConfig(max_trace_length=R, temperature=2.0, top_p=0.3),
    SamplingConfig(max_trace_length=R - 2, temperature=2.0),
  ]
  out = []
  for config in settings:
    generate = programs.build_generate(setup, config)
    out.append(np.asarray(generate(toy.params(), toy.prompts(6), jax.random.key(0)).token_NR))
  assert out[-1].shape == (6, R - 2)
  for i, left in enumerate(out):
    assert all((left[:, : R - 2] != right[:, : R - 2]).any() for right in out[i + 1 : 4])
  np.testing.assert_array_equal(out[1][:, : R - 2], out[4])  # a lower limit only cuts
  assert not (out[0] == toy.MARKER)[:, :-1].all()  # generation goes on behind a marker: only end tokens stop it


def test_errors():
  for over, text in [
    ({"max_trace_length": 0}, "sampling.max_trace_length: found 0"),
    ({"temperature": -1.0}, "sampling.temperature: found -1.0"),
    ({"top_k": -1}, "sampling.top_k: found -1"),
    ({"top_p": 0.0}, "sampling.top_p: found 0.0"),
    ({"wave_prompts": -1}, "sampling.wave_prompts: found -1"),
  ]:
    with pytest.raises(UserError, match=text):
      SamplingConfig(**over)
