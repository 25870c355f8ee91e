"""A gcloud that plays queued resources: waiting, running, preempted, silent, failing, as a scenario says.

`scenario.json` in $FAKE_CLOUD holds what is still to happen, `state.json` what is there, and `calls.jsonl` every call.
"""

import json
import os
import sys
import time

PLACE = os.environ["FAKE_CLOUD"]
LOST = {"preempt": "SUSPENDED", "fail": "FAILED", "vanish": None}


def load(name):
  with open(f"{PLACE}/{name}") as file:
    return json.load(file)


def save(name, value):
  with open(f"{PLACE}/{name}", "w") as file:
    json.dump(value, file)


def pop(scenario, key):
  """The next thing that happens under `key`; None where nothing is left."""
  found = scenario.get(key) or []
  value = found.pop(0) if found else None
  save("scenario.json", scenario)
  return value


def fail(text):
  sys.stderr.write(f"ERROR: (gcloud.compute.tpus.queued-resources) {text}\n")
  sys.exit(1)


def create(scenario, state):
  error = pop(scenario, "create_errors")
  if error:
    fail(error)
  if state["exists"]:
    fail("ALREADY_EXISTS: Resource already exists")
  save("state.json", {"exists": True, "waiting": scenario.get("waiting", 0), "state": "ACTIVE", "workers": "absent"})


def describe(scenario, state):
  error = pop(scenario, "describe_errors")
  if error:
    fail(error)
  if pop(scenario, "hangs"):
    time.sleep(60)
  if not state["exists"]:
    fail("NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/run' was not found")
  if state["waiting"]:
    save("state.json", {**state, "waiting": state["waiting"] - 1})
    print("WAITING_FOR_RESOURCES")
  else:
    print(state["state"])


def delete(scenario, state):
  error = pop(scenario, "delete_errors")
  if error:
    fail(error)
  save("state.json", {**state, "exists": False})


def ssh(scenario, state, command):
  if "workers" in scenario:
    sys.exit(on_workers(scenario["workers"], command))
  hosts = [f"t-w-{number}" for number in range(scenario["hosts"])]
  if "setup_tpu_vm.sh" in command:
    error = pop(scenario, "setup_errors")
    if error:
      fail(error)
  elif "worker.sh start" in command:
    save("state.json", {**state, "workers": "running"})
  elif "worker.sh stop" in command:
    error = pop(scenario, "stop_errors")
    if error:
      fail(error)
    save("state.json", {**state, "workers": "absent"})
    print("\n".join(f"worker {host} absent" for host in hosts))
  elif "worker.sh status" in command:
    status(scenario, state, hosts)
  elif command.startswith("echo"):
    print("\n".join(f"last {host} {scenario.get('log', '')}" for host in hosts))
  elif "tail" in command:
    print(scenario.get("log", ""))


def on_workers(homes, command):
  """Runs the command as ssh would, for each worker in a home directory of its own; the first that fails counts."""
  import subprocess  # here, for every call of gcloud would wait for it

  homes = homes[:1] if "--worker=0" in sys.argv else homes
  running = []
  for number, home in enumerate(homes):
    env = {**os.environ, "HOME": home, "TPU_WORKER_ID": str(number)}
    running.append(subprocess.Popen(["bash", "-c", command], cwd=home, env=env, stdin=subprocess.DEVNULL))
  return max(process.wait() for process in running)


def status(scenario, state, hosts):
  if state["workers"] == "absent":
    sys.exit(127)  # nothing is set up yet
  event = pop(scenario, "life") or "run"
  if event in LOST:
    save("state.json", {**state, "state": LOST[event], "exists": LOST[event] is not None})
    fail("Could not SSH into the instance")
  words = ["running"] * len(hosts)
  if event == "done":
    words = ["exited 0"] * len(hosts)
  elif event.startswith("exit "):
    words[-1] = f"exited {event.split()[1]}"
  elif event == "reboot":
    words = ["absent"] * len(hosts)
  for host, word in list(zip(hosts, words))[: -1 if event == "silent" else None]:
    print(f"worker {host} {word}")
  if event == "silent":
    fail("Could not SSH into the instance t-w-1")


def main(argv):
  with open(f"{PLACE}/calls.jsonl", "a") as calls:
    calls.write(json.dumps(argv) + "\n")
  assert argv[:3] == ["compute", "tpus", "queued-resources"], argv
  scenario, state = load("scenario.json"), load("state.json")
  command = next((word.removeprefix("--command=") for word in argv if word.startswith("--command=")), None)
  if argv[3] == "ssh":
    ssh(scenario, state, command)
  else:
    {"create": create, "describe": describe, "delete": delete}[argv[3]](scenario, state)


main(sys.argv[1:])
