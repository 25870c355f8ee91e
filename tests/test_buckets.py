"""Objects by their URLs, through the real clients: what is a URL, what is a refusal, what is missing."""

import errno
import importlib.util

import bucket as helper
import pytest

from nrt_jax import buckets
from nrt_jax.errors import UserError

HERE = "gs://bucket/place"


@pytest.fixture
def cloud(monkeypatch, tmp_path):
  return helper.emptied(monkeypatch, tmp_path)


@pytest.mark.parametrize("url", ["gs://bucket/run", "gs://my-b.x_1/a/b=c/d.e/"])
def test_urls(url, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
  assert buckets.checked(url, "--workdir") == url.rstrip("/")


@pytest.mark.parametrize(
  "url", ["s3://bucket/run", "gs://bucket", "gs://bucket/", "gs:///run", "gs://b b/run", "gs://bucket/a//b",
          "gs://bucket/../run", "gs://bucket/a/.", "gs://bucket/run?x", "gs://bucket/r*n", "gs://bucket/run#1"]
)  # fmt: skip
def test_what_is_no_url_of_a_place_is_refused(url):
  with pytest.raises(UserError, match=r"^--workdir: found 'g?s.*', allowed: a directory, or gs://BUCKET/PLACE; mount"):
    buckets.checked(url, "--workdir")


def test_a_missing_client_is_one_line(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"--checkpoint: gs://bucket/run: .*: pip install nrt_jax\[gcs\]$"):
    buckets.checked("gs://bucket/run", "--checkpoint")


def test_objects_come_and_go(cloud, tmp_path):
  (tmp_path / "file").write_bytes(b"of a file")
  buckets.write(f"{HERE}/a", b"1")
  buckets.upload(str(tmp_path / "file"), f"{HERE}/b/c")
  assert buckets.read(f"{HERE}/a") == b"1" and buckets.read(f"{HERE}/none") is None
  assert buckets.names(HERE) == ["a", "b"] and buckets.files(HERE) == ["a", "b/c"] and buckets.files(f"{HERE}x") == []
  assert buckets.exists(f"{HERE}/b") and not buckets.exists(f"{HERE}/c") and not buckets.exists("gs://bucket/plac")
  assert buckets.create(f"{HERE}/d", b"2") and not buckets.create(f"{HERE}/d", b"3")
  assert buckets.read(f"{HERE}/d") == b"2"
  buckets.download(f"{HERE}/b/c", str(tmp_path / "x" / "y"))
  assert (tmp_path / "x" / "y").read_bytes() == b"of a file" and len(list((tmp_path / "x").iterdir())) == 1
  buckets.copy_all(HERE, "gs://bucket/copy")
  buckets.remove(f"{HERE}/a"), buckets.remove(f"{HERE}/a")
  buckets.remove_all(f"{HERE}/b"), buckets.remove_all(f"{HERE}x")
  assert buckets.files(HERE) == ["d"] and buckets.files("gs://bucket/copy") == ["a", "b/c", "d"]


def test_a_refusal_names_the_url(cloud):
  for status, says in ((403, "Forbidden"), (401, "injected, 401")):
    check_refused(cloud, status, says)


def check_refused(cloud, status, says):
  cloud.fail = lambda method, name: status
  for act in (buckets.read, buckets.exists, buckets.files, buckets.remove, lambda url: buckets.write(url, b"")):
    with pytest.raises(OSError, match=f"Cloud Storage: {says}") as error:
      act(HERE)
    assert error.value.errno == errno.EACCES and error.value.filename == HERE


def test_a_missing_bucket_is_one_line_when_something_is_written(cloud, tmp_path):
  (tmp_path / "file").touch()
  for act in (
    lambda: buckets.write("gs://other/run/a", b""),
    lambda: buckets.create("gs://other/run/a", b""),
    lambda: buckets.upload(str(tmp_path / "file"), "gs://other/run/a"),
  ):
    with pytest.raises(UserError, match="gs://other/run/a: there is no bucket gs://other, or we may not write to it"):
      act()
  assert buckets.read("gs://other/run/a") is None and buckets.files("gs://other/run") == []


def test_a_bucket_must_say_what_kind_it_is(cloud):
  buckets.require_bucket(HERE)
  with pytest.raises(UserError, match="gs://other/run: there is no bucket gs://other, or we may not write to it"):
    buckets.require_bucket("gs://other/run")
  cloud.fail = lambda method, name: 403 if not name else None
  with pytest.raises(UserError, match=f"{HERE}: Cloud Storage: Forbidden.*; needed for a workdir: storage.buckets.get"):
    buckets.require_bucket(HERE)


@pytest.mark.parametrize(
  "error,number",
  [
    (OSError("Forbidden: b/o"), errno.EACCES),
    (ValueError("PERMISSION_DENIED: CAS write"), errno.EACCES),
    (ValueError("Error reading a: UNAVAILABLE: HTTP 503"), errno.EIO),
    (ConnectionError(), errno.EIO),
    (ValueError("NOT_FOUND: a"), None),
    (ValueError("DATA_LOSS: a"), None),
    (FileNotFoundError("a"), None),
    (OSError(errno.ENOSPC, "full"), None),
    (UserError("ours"), None),
  ],
)
def test_what_is_a_refusal(error, number):
  found = buckets.os_error(error, HERE)
  assert (found and found.errno) == number and (number is None or found.filename == HERE)
