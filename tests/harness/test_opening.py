import harness_tasks
import pytest

from nrt_jax.errors import UserError
from nrt_jax.harness.opening import Source, open_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return tmp_path_factory.mktemp("models")


def test_a_model_of_others_keeps_its_vocabulary_and_writes_no_traces(place):
  """No row for a marker that it has never seen; rows behind the last token are tokens, as they are elsewhere."""
  opened = open_model(Source(str(harness_tasks.make_model(place / "plain")), data=1))
  model = opened.setup.model
  assert (model.vocab_size, model.vocab_unused, model.vocab_padding) == (316, 0, 0)
  assert len(opened.tokenizer) == 310 and opened.trace_length == 0 and opened.max_length == 64
  assert opened.setup.mesh is None and opened.step is None
  with pytest.raises(UserError, match="--marker: found '</think>', which begins with no token that this model has"):
    open_model(Source(str(place / "plain"), data=1, marker="</think>"))


def test_an_export_writes_traces_as_in_training(place):
  settings = {"prompt": {"marker": harness_tasks.MARKER, "trace_open": "<"}, "max_trace_length": 7}
  path = str(harness_tasks.make_model(place / "export", marker=True, **settings))
  opened = open_model(Source(path, data=1, max_length=40))
  assert opened.trace_length == 7 and opened.prompt.trace_open == "<" and opened.max_length == 40
  assert opened.tokenizer.decode(list(opened.form.marker_ids)) == harness_tasks.MARKER
  assert open_model(Source(path, data=1, max_trace_length=0)).trace_length == 0
  assert open_model(Source(path, data=1, max_trace_length=9)).trace_length == 9


@pytest.mark.parametrize(
  "given,message",
  [
    ({}, "--model, --checkpoint: found neither"),
    ({"path": "a", "checkpoint": "b"}, "found both"),
    ({"path": "a", "step": 3}, "--step: found 3 with --model"),
    ({"path": "a", "max_trace_length": -1}, "--max_trace_length: found -1, allowed: a whole number, 0 or more"),
    ({"path": "a", "tensor": "two"}, "--tensor: found 'two'"),
    ({"path": "gone"}, "gone"),
    ({"checkpoint": "gone"}, "--checkpoint: found 'gone'"),
  ],
)
def test_mistakes(given, message):
  with pytest.raises(UserError, match=message):
    open_model(Source(**given))
