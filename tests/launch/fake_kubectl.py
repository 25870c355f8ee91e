"""A kubectl that plays one JobSet, as `scenario.json` in $FAKE_CLOUD says; every call is a line of calls.jsonl."""

import json
import os
import sys

PLACE = os.environ["FAKE_CLOUD"]


def write(name, text):
  with open(f"{PLACE}/{name}", "w") as file:
    file.write(text)


def main(argv):
  with open(f"{PLACE}/calls.jsonl", "a") as calls:
    calls.write(json.dumps(argv) + "\n")
  with open(f"{PLACE}/scenario.json") as file:
    scenario = json.load(file)
  verb, life = argv[1], scenario["life"]
  if verb == "create":
    write("manifest.yaml", sys.stdin.read())
    answer(scenario, "create_errors")
    write("there", "")
  elif verb == "delete":
    answer(scenario, "delete_errors")
    if os.path.exists(f"{PLACE}/there"):
      os.remove(f"{PLACE}/there")
  elif verb == "get" and os.path.exists(f"{PLACE}/there"):
    print(json.dumps({"status": life.pop(0) if len(life) > 1 else life[0]}))
    write("scenario.json", json.dumps(scenario))
  elif verb == "logs":
    print(scenario.get("log", ""))


def answer(scenario, key):
  """Fails where the scenario has an error left for this verb."""
  errors = scenario.get(key) or []
  if errors:
    sys.stderr.write(errors.pop(0) + "\n")
    write("scenario.json", json.dumps(scenario))
    sys.exit(1)


main(sys.argv[1:])
