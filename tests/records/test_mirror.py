"""The copy of a workdir in a bucket: what is fetched, what is uploaded and when, what is left at the end."""

import os
import pathlib
import shutil

import bucket as helper
import pytest

from nrt_jax.errors import UserError
from nrt_jax.records import mirror

RUN = "gs://bucket/runs/one"


@pytest.fixture
def cloud(monkeypatch, tmp_path):
  return helper.emptied(monkeypatch, tmp_path / "cache")


def put(cloud, **files):
  for name, text in files.items():
    cloud.put(f"runs/one/{name.replace('__', '/')}", text.encode())


def there(cloud):
  return {name.removeprefix("runs/one/"): data.decode() for name, (data, _) in cloud.objects.items()}


@pytest.fixture
def copy(cloud, tmp_path):
  (tmp_path / "here").mkdir()
  return mirror.Copy(RUN, str(tmp_path / "here"))


def test_a_local_workdir_is_used_as_it_is(tmp_path):
  with mirror.opened(str(tmp_path / "run")) as files:
    assert files.workdir == str(tmp_path / "run") and files.left is None
    assert files.upload() is None and files.upload(exports=True) is None
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.lock"}
  assert mirror.checkpoints_of(str(tmp_path / "run")) == str(tmp_path / "run" / "checkpoints")
  assert mirror.local(str(tmp_path), "--checkpoint") == str(tmp_path)


def test_what_is_small_is_fetched_and_what_the_bucket_lacks_goes(cloud, copy, tmp_path):
  put(cloud, config="{}", tokenizer__a="t", checkpoints__1__state="s", export__model="m", tensorboard__e="e")
  put(cloud, **{"run.lock": "l"})
  (tmp_path / "here" / "compiled").mkdir()
  for name in ("old", "compiled/program", "run.lock"):
    (tmp_path / "here" / name).write_text("x")
  copy.fetch()
  found = {str(path.relative_to(tmp_path / "here")) for path in (tmp_path / "here").rglob("*") if path.is_file()}
  assert found == {"config", "tokenizer/a", "compiled/program", "run.lock", mirror.SOURCE}
  assert mirror.checkpoints_of(copy.place) == f"{RUN}/checkpoints"


def test_what_has_changed_is_uploaded_and_nothing_twice(cloud, copy, tmp_path):
  put(cloud, metrics="1\n", kept="k", gone="g", tensorboard__before="b", tokenizer__old="t")
  copy.fetch()
  here = tmp_path / "here"
  (here / "metrics").write_text("1\n2\n")
  (here / "tensorboard").mkdir()
  (here / "tensorboard" / "now").write_text("n")
  (here / "gone").unlink(), (here / "tokenizer" / "old").unlink()
  for passing in ("config.json.7.tmp", "run.lock"):
    (here / passing).write_text("x")
  (here / "tokenizer.partial").mkdir()
  (here / "tokenizer.partial" / "a").touch()
  copy.upload(), copy.upload()
  wanted = {"metrics": "1\n2\n", "kept": "k", "gone": "g", "tensorboard/before": "b", "tensorboard/now": "n"}
  assert there(cloud) == wanted
  uploads = [query for method, _, query in cloud.requests if method == "POST" and "uploadType" in query]
  assert len(uploads) == 2


def test_an_export_takes_the_place_of_the_one_before_and_its_config_comes_last(cloud, copy, tmp_path):
  put(cloud, export__model_2="old")
  copy.fetch()
  (tmp_path / "here" / "export").mkdir()
  for name in ("config.json", "model", "tokenizer.json"):
    (tmp_path / "here" / "export" / name).write_text(name)
  copy.upload()
  assert there(cloud) == {"export/model_2": "old"}
  copy.upload(exports=True)
  assert list(there(cloud)) == ["export/model", "export/tokenizer.json", "export/config.json"]  # as they were written


def test_what_a_run_before_has_left_here_goes_nowhere(cloud):
  """Another machine has gone on since; then this one can't fetch what it has done."""
  place = pathlib.Path(mirror.place_of(RUN, "run-0"))
  place.mkdir(parents=True)
  (place / "metrics").write_text("old")
  put(cloud, config="c", metrics="new")
  cloud.fail = lambda method, name: 403 if method == "GET" and name.endswith("metrics") else None
  with pytest.raises(OSError, match="Forbidden"), mirror.opened(RUN):
    pass
  assert there(cloud) == {"config": "c", "metrics": "new"}


def test_a_copy_that_is_removed_takes_nothing_with_it(cloud, copy, tmp_path):
  put(cloud, config="c", metrics="m")
  copy.fetch()
  shutil.rmtree(tmp_path / "here")
  with pytest.raises(UserError, match="here: has been removed while the run was going on"):
    copy.upload()
  assert there(cloud) == {"config": "c", "metrics": "m"}


def test_no_object_is_fetched_to_another_place(cloud, copy, tmp_path):
  put(cloud, **{"../out": "x", "tokenizer__..__..__..__out": "x", "/root": "x", "config": "c"})
  copy.fetch()
  assert names(copy.place) == [mirror.SOURCE, "config"] and not (tmp_path / "out").exists()


def test_nothing_is_uploaded_to_a_workdir_that_is_anothers_now(cloud, copy, tmp_path):
  def require():
    raise UserError("taken over")

  copy.require = require
  (tmp_path / "here" / "a").touch()
  with pytest.raises(UserError, match="taken over"):
    copy.upload()
  assert there(cloud) == {}


def test_at_the_end_the_copy_goes_if_the_bucket_has_it(cloud, capsys):
  with mirror.opened(RUN) as files:
    place = files.workdir
    write_files(place)
    assert "run.lock" in there(cloud)
  assert there(cloud) == {"metrics": "1"}
  assert mirror.place_of(RUN, "run-0") == place and place.endswith("/one")
  assert names(place) == ["compiled"]
  with mirror.opened(RUN) as files:
    assert names(place) == [mirror.SOURCE, "compiled", "metrics", "run.lock"]
    write_files(place, "2")
    cloud.fail = lambda method, name: 403
  assert f"{RUN}: the newest files are only here, in {place}: " in capsys.readouterr().err
  assert "metrics" in names(place)


def write_files(place, text="1"):
  place = pathlib.Path(place)
  (place / "metrics").write_text(text)
  (place / "compiled").mkdir(exist_ok=True)
  (place / "compiled" / "program").touch()


def names(place):
  return sorted(os.listdir(place))


def test_a_reader_gets_what_is_there(cloud):
  put(cloud, **{"config.json": "{}", "checkpoints__1__state": "s"})
  for url in (RUN, f"{RUN}/", f"{RUN}/checkpoints"):
    place = mirror.local(url, "--checkpoint")
    assert names(place) == [mirror.SOURCE, "config.json"] and mirror.checkpoints_of(place) == f"{RUN}/checkpoints"
  with pytest.raises(UserError, match="RUN: found 'gs://bucket/none', where nothing is; allowed: a run's workdir"):
    mirror.local("gs://bucket/none", "RUN")
