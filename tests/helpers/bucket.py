"""A small server of Cloud Storage's JSON interface on this machine: what gcsfs, Orbax and TensorStore ask of a bucket.

Objects live in memory and are written whole or not at all, as in the real one. There is one bucket; the precondition
ifGenerationMatch holds; credentials are not looked at.
"""

import base64
import contextlib
import functools
import hashlib
import http.server
import importlib.util
import json
import re
import sys
import threading
import time
import urllib.parse

import pytest

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/?]+)")


class Bucket:
  """`objects`: name -> (bytes, generation). `fail(method, name)`: the status that a request gets, None for its own."""

  def __init__(self, name: str = "bucket"):
    self.name, self.objects, self.requests = name, {}, []
    self.fail = lambda method, name: None
    self._generation, self._uploads, self.lock = 0, {}, threading.RLock()

  def put(self, name: str, data: bytes, match: str | None = None) -> dict | None:
    """The object's description; None where its generation is not `match` (0: it must not exist)."""
    with self.lock:
      if match is not None and int(match) != self.objects.get(name, (b"", 0))[1]:
        return None
      self._generation += 1
      self.objects[name] = (data, self._generation)
      return self.describe(name)

  def describe(self, name: str) -> dict:
    data, generation = self.objects[name]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    digest = base64.b64encode(hashlib.md5(data).digest()).decode()
    about = {"kind": "storage#object", "name": name, "bucket": self.name, "generation": str(generation)}
    about |= {"size": str(len(data)), "md5Hash": digest, "contentType": "application/octet-stream"}
    return about | {"updated": now, "timeCreated": now}

  def begin(self, name: str, match: str | None) -> str:
    """The id of an upload in pieces."""
    with self.lock:
      self._uploads[str(len(self._uploads))] = [name, match, b""]
      return str(len(self._uploads) - 1)

  def add(self, upload: str, data: bytes, last: bool) -> dict | None:
    self._uploads[upload][2] += data
    name, match, whole = self._uploads[upload]
    return self.put(name, whole, match) if last else None

  def list(self, prefix: str, delimiter: str) -> dict:
    names = sorted(name for name in list(self.objects) if name.startswith(prefix))
    cut = {}
    for name in names:
      head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
      cut.setdefault(prefix + head + found if found else None, []).append(name)
    items = [self.describe(name) for name in cut.pop(None, ())]
    return {"kind": "storage#objects", "items": items, "prefixes": sorted(cut)}


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def _act(self) -> None:
    bucket, url = self.server.bucket, urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    parts = url.path.split("/")
    where = parts.index("b") if "b" in parts else len(parts)
    found, kind, *name = [urllib.parse.unquote(part) for part in parts[where + 1 :]] + ["", ""]
    name = name[0] or query.get("name") or query.get("prefix", "")
    bucket.requests.append((self.command, name, query))
    status = bucket.fail(self.command, name)
    if status is not None:
      return self._say(status, {"error": {"code": status, "message": "injected"}})
    if found != bucket.name:
      return self._say(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
    if not kind:
      return self._say(200, {"kind": "storage#bucket", "name": bucket.name, "id": bucket.name})
    if url.path.startswith("/upload/") or url.path.startswith("/resumable/"):
      return self._upload(bucket, query, body)
    if "/rewriteTo/" in url.path:
      return self._copy(bucket, name, urllib.parse.unquote(parts[-1]))
    if not OBJECT.match(url.path):
      return self._say(200, bucket.list(query.get("prefix", ""), query.get("delimiter", "")))
    with bucket.lock:
      if name not in bucket.objects:
        return self._say(404, {"error": {"code": 404, "message": "No such object"}})
      about, data = bucket.describe(name), bucket.objects[name][0]
      if query.get("ifGenerationMatch", about["generation"]) != about["generation"]:
        return self._say(412, {"error": {"code": 412, "message": "conditionNotMet"}})
      if query.get("ifGenerationNotMatch") == about["generation"]:
        return self._say(304, None)
      if self.command == "DELETE":
        del bucket.objects[name]
        return self._say(204, None)
    if query.get("alt") == "media":
      return self._media(about, data)
    return self._say(200, about)

  def _copy(self, bucket: Bucket, name: str, target: str) -> None:
    with bucket.lock:
      if name not in bucket.objects:
        return self._say(404, {"error": {"code": 404, "message": "No such object"}})
      return self._say(200, {"done": True, "resource": bucket.put(target, bucket.objects[name][0])})

  def _media(self, about: dict, data: bytes) -> None:
    cut = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
    status, headers = 200, {"x-goog-generation": about["generation"], "x-goog-hash": f"md5={about['md5Hash']}"}
    if cut:
      start = int(cut[1]) if cut[1] else max(0, len(data) - int(cut[2]))
      end = min(len(data), int(cut[2]) + 1) if cut[1] and cut[2] else len(data)
      if start >= len(data):
        return self._say(416, None)
      headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
      status, data = 206, data[start:end]
    self._say(status, data, headers)

  def _upload(self, bucket: Bucket, query: dict, body: bytes) -> None:
    match, way = query.get("ifGenerationMatch"), query.get("uploadType")
    if "upload_id" in query:
      numbers = re.match(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range", "bytes */0"))
      last = numbers[3] != "*" and (numbers[2] is None or int(numbers[2]) + 1 == int(numbers[3]))
      about = bucket.add(query["upload_id"], body, last)
      if not last:
        return self._say(308, None, {"Range": f"bytes=0-{int(numbers[2])}"})
    elif way == "resumable":
      name = query.get("name") or json.loads(body)["name"]
      upload = bucket.begin(name, match)
      place = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket.name}/o?uploadType=resumable&upload_id={upload}"
      return self._say(200, {}, {"Location": place})
    elif way == "multipart":
      boundary = self.headers["Content-Type"].split("boundary=")[1].strip('"').encode()
      about_part, data_part = body.split(b"--" + boundary)[1:3]
      about = json.loads(re.split(rb"\r?\n\r?\n", about_part, maxsplit=1)[1])
      data = re.split(rb"\r?\n\r?\n", data_part, maxsplit=1)[1]
      about = bucket.put(about["name"], data.removesuffix(b"\n").removesuffix(b"\r"), match)
    else:
      about = bucket.put(query["name"], body, match)
    if about is None:
      return self._say(412, {"error": {"code": 412, "message": "conditionNotMet"}})
    return self._say(200, about)

  def _say(self, status: int, body, headers=()) -> None:
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    for name, value in {"Content-Type": "application/json", **dict(headers)}.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    with contextlib.suppress(ConnectionError):  # a client may look at the status alone
      self.wfile.write(data)

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _act

  def log_message(self, *_) -> None: ...


class Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 64

  def handle_error(self, request, client_address) -> None:
    if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
      super().handle_error(request, client_address)


@functools.cache
def server() -> Server:
  """The one of this process: TensorStore and google-cloud-storage remember the first address that they are given."""
  found = Server(("127.0.0.1", 0), Handler)
  found.bucket = Bucket()
  threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
  return found


def emptied(monkeypatch, cache) -> Bucket:
  """The bucket, empty, where the real clients of this process and of its children find it.

  cache: the directory for what this machine keeps of workdirs.
  """
  if importlib.util.find_spec("gcsfs") is None:
    pytest.skip('pip install "nrt_jax[gcs]"')
  import fsspec

  address = f"http://127.0.0.1:{server().server_port}"
  for name, value in {
    "STORAGE_EMULATOR_HOST": address,
    "TENSORSTORE_GCS_HTTP_URL": address,
    "FSSPEC_GCS_TOKEN": "anon",  # of children
    "XDG_CACHE_HOME": str(cache),
  }.items():
    monkeypatch.setenv(name, value)
  fsspec.config.conf.setdefault("gcs", {})["token"] = "anon"
  bucket = server().bucket
  bucket.objects.clear(), bucket.requests.clear()
  bucket.fail = lambda method, name: None
  return bucket
