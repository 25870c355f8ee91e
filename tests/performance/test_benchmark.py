"""The benchmark command, its figures, and that training compiles nothing after its start."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
import toy
from paths import EXPERIMENTS

from nrt_jax import __main__, config, training
from nrt_jax.algorithms import sft
from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.arrays import Rollouts
from nrt_jax.model import costs
from nrt_jax.performance import ceilings, phases, report
from nrt_jax.performance.compilations import Compilations
from nrt_jax.records.metrics import MetricsWriter
from nrt_jax.step import hardware, programs, throughput


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A directory with a model directory and a config file."""
  path = tmp_path_factory.mktemp("benchmark")
  return places.make(path, model__layer_loop="scan", prompts_per_step=16, samples_per_prompt=2)


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
  monkeypatch.setitem(ceilings.MATRIX, "cpu", 64)
  monkeypatch.setitem(ceilings.COPIED, "cpu", 2**16)


def run(place, capsys, *flags):
  """(report, text) of a run of the command."""
  argv = ["benchmark", "--config", str(place / "config.py"), "--json", str(place / "out" / "report.json"), *flags]
  assert __main__.main(argv) == 0
  return json.loads((place / "out" / "report.json").read_text()), capsys.readouterr().out


# ---- The command ---------------------------------------------------------------------------------------------------


def test_a_verifier_free_run_on_a_mesh(place, capsys, tmp_path):
  flags = ("--repeats", "2", "--profile", str(tmp_path / "trace"), "--config.parallel.fsdp=2")
  report, text = run(place, capsys, *flags, "--config.sampling.wave_prompts=8")
  names = [phase["name"] for phase in report["phases"]]
  sampled = ["rollout_weights", "prefill", "decode", "score_answer", "score_empty_trace"]
  assert names == [*sampled, "update", "host_batch"]
  step = report["step"]
  assert report["compile"]["recompiles"] == 0 and report["compile"]["programs"] == 1
  assert len(step["seconds"]["all"]) == 2 and step["seconds"]["low"] <= step["seconds"]["median"]
  assert 32 <= step["generated_tokens"] <= 32 * 4  # 16 prompts x 2 samples of 1 to 4 tokens
  assert step["trained_tokens"] > step["generated_tokens"] and 0 < step["mfu"]
  decode = next(phase for phase in report["phases"] if phase["name"] == "decode")
  assert decode["bandwidth_share"] == pytest.approx(decode["bytes_per_s"] / report["ceilings"]["bandwidth"])
  assert report["memory"]["planned_bytes"]["total"] > report["memory"]["planned_bytes"]["temporaries"] > 0
  assert report["run"]["devices"] == 8
  for words in ("programs compiled after the first step: 0", "their sum may differ", "score empty trace"):
    assert words in text
  assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_a_host_grader_under_pmap(place, capsys):
  flags = ("--config.algorithm.name=grpo", "--config.algorithm.verifier=host", "--config.parallel.kind=pmap")
  report, text = run(place, capsys, "--repeats", "1", *flags)
  names = [phase["name"] for phase in report["phases"]]
  assert names == ["rollout_weights", "prefill", "decode", "host_grading", "score_batch", "update", "host_batch"]
  assert report["compile"]["programs"] == 2 and report["compile"]["recompiles"] == 0
  assert "grading (host)" in text and "score reference" in text and "score answers" not in text


def test_sft_samples_nothing_and_steps_are_kept_before_phases_are_compiled(place, capsys, monkeypatch):
  kept, measure = [], phases.measure

  def measure_then(*args):
    kept.append(json.loads((place / "out" / "report.json").read_text()))
    return measure(*args)

  monkeypatch.setattr(phases, "measure", measure_then)
  report, text = run(place, capsys, "--repeats", "1", "--config.algorithm.name=sft")
  assert kept == [report | {"phases": []}]
  assert [phase["name"] for phase in report["phases"]] == ["update", "host_batch"]
  assert "generated_tokens" not in report["step"] and "decode" not in text.splitlines()[8]


def test_mistakes_are_one_line(place, capsys, tmp_path):
  (tmp_path / "file").write_text("")
  for flags, word in (
    (("--stage", "mian"), "allowed: main"),
    (("--repeats", "0"), "1 or more"),
    (("--json", str(tmp_path / "file" / "report.json")), "--json"),
  ):
    assert __main__.main(["benchmark", "--config", str(place / "config.py"), *flags]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert word in line and line.startswith("nrt-jax:")


# ---- Phases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_each_method_asks_of_the_tools(name):
  """The phases are timed on what the algorithm itself samples and scores, whichever it is."""
  setup = toy.setup(name)
  states = jax.eval_shape(lambda p: programs.init_states(setup, p, jax.random.key(0)), toy.params())
  (batch, _), calls, counts = jax.eval_shape(lambda s, p: phases.collect(setup, s, p), states, toy.prompts(8))
  assert len({"rollout", "complete"} & set(calls)) == setup.algorithm.samples_traces
  assert {"tokens/trained", "tokens/sequences", "tokens/predicted"} <= set(counts)
  assert batch.token_NL.shape[0] == 8 * setup.rows_per_prompt
  reference = getattr(setup.run.algorithm, "kl_coef", 0) > 0
  assert ("score_batch" in calls) or not reference
  assert ("score_start" in calls) == (name in ("nrt", "verifree", "dro", "rlpr", "nover", "nft", "dpo", "raro") or "gr" in name
                                      or name in ("dapo", "gspo"))  # fmt: skip


def test_decode_bytes_by_counting():
  """Slot by slot: what each token of each row must see, prompts once for their samples, weights once for all."""
  setup = toy.setup("nrt", samples_per_prompt=2)
  length_N, prompt_B = np.array([3, 1, 4, 4]), np.array([5, 2])
  rollouts = Rollouts(None, length_N, None, None, None)
  model = setup.decoder
  slot = 4 * 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim  # bytes, float32
  count = sum(range(1, 4)) + 1 + 2 * sum(range(1, 5))  # own slots
  for b, longest in enumerate((3, 4)):
    count += int(prompt_B[b]) * longest
  weights = model.num_hidden_layers * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32) + 16 * toy.VOCAB
  prompts = toy.prompts(2).replace(prompt_length_B=prompt_B)
  assert phases.decode_bytes(setup, prompts, rollouts) == pytest.approx(4 * 4 * weights + slot * count)


# ---- Work and rates ------------------------------------------------------------------------------------------------


def test_tokens_are_counted_by_hand():
  setup, prompts = toy.setup("sft"), toy.prompts(6, trace_width=3)
  spliced = sft.splice(programs.make_tools(setup), prompts)
  batch = sft.supervised_batch(spliced, jnp.zeros(spliced.token_NL.shape))
  counts = throughput.count_tokens(setup, prompts, batch)
  behind = int(prompts.trace_length_B.sum() + 6 + prompts.answer_length_B.sum())
  expected = {"trained": int(prompts.prompt_length_B.sum()) + behind, "predicted": behind, "sequences": 6}
  assert {name: int(value) for name, value in counts.items()} == {f"tokens/{k}": v for k, v in expected.items()}


def work(setup, phases=throughput.PHASES, peak=None):
  return throughput.Work(setup, phases, peak)


TOKENS = {
  "tokens/prompt": 8 * 5.0, "tokens/answer": 8 * 3.0, "tokens/generated": 32 * 6.0,
  "tokens/trained": 32 * 15.0, "tokens/sequences": 32.0, "tokens/predicted": 32 * 10.0,
}  # fmt: skip


def test_model_flops_of_rows_of_one_length_are_those_of_the_cost_model():
  setup = toy.setup("nrt")
  tokens = throughput.take_tokens(dict(TOKENS))
  lengths = costs.Lengths(prompts=8, samples=4, prompt=5, trace=6, marker=1, answer=3)
  expected = costs.step_flops(setup.model, lengths)
  found = throughput.model_flops(work(setup), tokens)
  assert found.pop("score_batch") == pytest.approx(32 * costs.forward_flops(setup.model, 0, 15, 10))
  assert found.pop("score_start") == 0  # one minibatch
  several = throughput.model_flops(work(toy.setup("nrt", optimizer__minibatches=4)), tokens)
  assert several["score_start"] == pytest.approx(24 * costs.forward_flops(setup.model, 0, 15, 10))
  assert found == pytest.approx(expected)
  assert set(throughput.model_flops(work(setup, ("decode", "update")), tokens)) == {"decode", "update"}
  shared = throughput.model_flops(work(setup), tokens | {"shared": 24 * 5.0})["update"]
  assert shared == pytest.approx(expected["update"] - 24 * costs.train_flops(setup.model, 5, 0))


def test_rates_take_the_place_of_counts():
  setup = toy.setup("nrt")
  values = throughput.rates(work(setup, peak=1e9), {**TOKENS, "loss/total": 1.0}, 2.0)
  flops = sum(throughput.model_flops(work(setup), throughput.take_tokens(dict(TOKENS))).values())
  assert values == pytest.approx(
    {
      "loss/total": 1.0,
      "time/step": 2.0,
      "throughput/generated_tokens_per_s": 96.0,
      "throughput/trained_tokens_per_s": 240.0,
      "throughput/mfu": flops / 2e9,
    }
  )
  assert "throughput/mfu" not in throughput.rates(work(setup), dict(TOKENS), 2.0)


def test_ceilings_come_from_the_table_or_from_the_clock(monkeypatch):
  measured = ceilings.find("bfloat16")
  assert measured.flops > 0 and measured.bandwidth > 0 and "measured" in measured.source
  monkeypatch.setattr(hardware, "lookup", lambda kind: hardware.by_name("v5e"))
  known = ceilings.find("bfloat16")
  assert known.flops == 197e12 * jax.device_count() and "v5e" in known.source


def test_quantities_are_readable():
  assert [report.quantity(n) for n in (1.5, 989.5e12, 4.8e12, 12.34e9)] == [
    "1.5 ",
    "989.5 T",
    "4.8 T",
    "12.34 G",
  ]


# ---- experiments/benchmarks ----------------------------------------------------------------------------------------


def test_scoring_on_caches_is_compared_with_whole_sequences(monkeypatch):
  """The script stops by itself where the two differ."""
  monkeypatch.syspath_prepend(str(EXPERIMENTS / "benchmarks"))
  import scoring
  import setups

  sizes = setups.Sizes(32, 16, 64, 1, 4, 2, 4, prompts=8, samples=2, prompt_length=4, trace_length=6, answer_length=3)
  seconds = scoring.compare(sizes, repeats=2)
  assert all(len(each) == 2 and min(s.wall for s in each) > 0 for each in seconds.values())
  monkeypatch.setattr(scoring, "on_caches", lambda *a: scoring.whole_sequences(*a[:-1]) + 0.01)
  with pytest.raises(AssertionError, match="differ by"):
    scoring.compare(sizes, repeats=1)
  pairs = [(1.0, 6.0), (3.0, 6.0), (2.0, 6.0)], [(2.0, 2.0)] * 3
  assert setups.paired(*pairs) == "1.000 (0.500 to 1.500) | 3.000 (3.000 to 3.000)"


# ---- Compiled once -------------------------------------------------------------------------------------------------


def test_compilations_are_seen():
  def program(x):
    return x * 3.0 - jnp.sin(x)

  compiled, x = jax.jit(program), jnp.ones(3)
  with Compilations() as seen:
    compiled(x)
    assert seen.count == 1
    compiled(x + 0)  # "+ 0" may compile, the program may not
    before = seen.count
    compiled(x)
    assert seen.count == before
    compiled(jnp.ones(4))
    assert seen.count > before
  after = seen.count
  jax.jit(lambda x: x - 7)(x)
  assert seen.count == after  # closed


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_training_compiles_nothing_after_its_first_step(place, tmp_path, monkeypatch, kind):
  values = config.defaults("nrt")
  values.update(total_steps=5, prompts_per_step=16, samples_per_prompt=2)
  values["model"].update(path=str(place / "model"), weights="random", layer_loop="scan")
  values["prompt"].update(max_prompt_length=11, max_answer_length=8)
  values["data"].update(source="task:running_sum", examples=40)
  values["sampling"]["max_trace_length"] = 4
  values["parallel"]["kind"] = kind
  values["evaluation"].update(data={"source": "task:running_sum", "split": "test", "examples": 16}, batch_prompts=16)
  values["evaluation"]["every_steps"] = 2
  values["logging"].update(samples_every_steps=0, tensorboard=False, progress=False)
  seen, counts, write = Compilations(), {}, MetricsWriter.write

  def write_and_count(self, step, metrics):
    if "loss/total" in metrics:
      counts[step] = seen.count
    write(self, step, metrics)

  monkeypatch.setattr(MetricsWriter, "write", write_and_count)
  monkeypatch.setattr(hardware, "lookup", lambda kind: hardware.by_name("v5e"))  # of a known chip, MFU is written
  with seen:
    training.train(config.stages_of(values), str(tmp_path), values)
  assert counts[1] > 0  # the step itself was compiled, or read from the cache
  assert set(counts) == {1, 2, 3, 4, 5} and counts[5] == counts[2], counts
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  steps = [line for line in lines if "loss/total" in line]
  assert all(0 < line["throughput/mfu"] < 1e-3 and 0 <= line["update/padded_fraction"] < 1 for line in steps)
  assert not any(name.startswith("tokens/") for line in steps for name in line)
