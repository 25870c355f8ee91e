"""Lines of JSON that an interrupted writer may have cut off. What is written as a whole is tested where it is used."""

from nrt_jax.files import append_json_line, read_json_lines


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path):
  path = tmp_path / "lines.jsonl"
  assert read_json_lines(path) == []
  append_json_line(path, {"a": 1})
  with open(path, "a") as file:
    file.write('{"a": ')
  assert read_json_lines(path) == [{"a": 1}]
  append_json_line(path, {"a": float("nan"), "b": (1, 2)})
  append_json_line(path, {"a": 3})
  assert read_json_lines(path) == [{"a": 1}, {"a": None, "b": [1, 2]}, {"a": 3}]
