"""A fake endpoint on this machine that judges as a function says: it may answer, fail, stall, ramble or hang up."""

import contextlib
import http.server
import json
import sys
import threading
import time

CLOSE = object()  # hangs up without a word


def said(text, finish="stop", usage=None) -> dict:
  """A chat completion."""
  body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
  return {**body, "usage": usage} if usage else body


class Fails:
  """A status, a body (text, or JSON of anything else), and headers."""

  def __init__(self, status, body="", **headers):
    self.status, self.text, self.headers = status, body if isinstance(body, str) else json.dumps(body), headers


class Trickles:
  """A text of which one byte comes after each pause."""

  def __init__(self, text, pause):
    self.text, self.pause = json.dumps(said(text)), pause


def stalls(seconds, then):
  """Waits before it answers."""
  return lambda: (time.sleep(seconds), then)[1]


@contextlib.contextmanager
def serving(judge):
  """The URL and the list of requests so far of a server that answers judge(body, number), number being from 0.

  judge -> a text, a dict as JSON, a Fails, bytes as they are, CLOSE, Trickles, or a function that gives one.
  """
  asked, lock = [], threading.Lock()

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
      length = int(self.headers["Content-Length"])
      sent = self.rfile.read(length)
      if len(sent) < length:  # the client has gone
        self.close_connection = True
        return
      body = json.loads(sent)
      with lock:
        number = len(asked)
        asked.append({"path": self.path, "authorization": self.headers["Authorization"], "body": body})
      made = judge(body, number)
      made = made() if callable(made) else made
      self.close_connection = made is CLOSE
      if made is CLOSE:
        return
      made = said(made) if isinstance(made, str) else made
      status, headers, pause = 200, {}, 0
      if isinstance(made, Trickles):
        made, pause = made.text.encode(), made.pause
      if isinstance(made, Fails):
        status, headers, made = made.status, made.headers, made.text.encode()
      elif isinstance(made, dict):
        made = json.dumps(made).encode()
      with contextlib.suppress(OSError):  # the client did not wait for it
        self.send_response(status)
        for name, value in headers.items():
          self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(made)))
        self.end_headers()
        for start in range(0, len(made), 1 if pause else max(1, len(made))):
          time.sleep(pause)
          self.wfile.write(made[start : start + 1] if pause else made)

    def log_message(self, *_):
      pass

  class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
      """Says nothing of a client that hangs up between two requests."""
      if not isinstance(sys.exception(), ConnectionError):
        super().handle_error(request, client_address)

  server = Server(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
  finally:
    server.shutdown()
    server.server_close()


def shown(body) -> tuple[str, str]:
  """The two answers of a pairwise prompt, in the order in which they are shown; the second is "" where there is one."""
  text = body["messages"][0]["content"]
  parts = []
  for letter in "AB":
    _, _, rest = text.partition(f"<answer_{letter}-")
    parts.append(rest.partition(">\n")[2].partition("\n</answer_")[0])
  return tuple(parts)


def longest(body, number) -> str:
  """A judge that likes long answers, and says so."""
  first, second = shown(body)
  verdict = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
  return f"Length is all that I see.\nVerdict: {verdict}"


def write(path, answers, **more):
  """A file of completions: answers[question] is an answer, or a list of samples' answers."""
  lines = []
  for question, given in answers.items():
    for sample, answer in enumerate(given if isinstance(given, list) else [given]):
      line = {"question": question, "reference": f"reference of {question}", "answer": answer, "sample": sample}
      lines.append(json.dumps({**line, "trace": f"thought {sample}", **more}) + "\n")
  path.write_text("".join(lines))
  return path
