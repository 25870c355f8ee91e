"""A kubectl that plays one JobSet, as `scenario.json` in $FAKE_CLOUD says; every call is a line of calls.jsonl."""

import json
import os
import pathlib
import sys

PLACE = pathlib.Path(os.environ["FAKE_CLOUD"])


def main(argv):
  with open(PLACE / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(argv) + "\n")
  scenario = json.loads((PLACE / "scenario.json").read_text())
  verb, life = argv[1], scenario["life"]
  if verb == "create":
    (PLACE / "manifest.yaml").write_text(sys.stdin.read())
    answer(scenario, "create_errors")
    (PLACE / "there").touch()
  elif verb == "delete":
    answer(scenario, "delete_errors")
    (PLACE / "there").unlink(missing_ok=True)
  elif verb == "get" and (PLACE / "there").exists():
    print(json.dumps({"status": life.pop(0) if len(life) > 1 else life[0]}))
    (PLACE / "scenario.json").write_text(json.dumps(scenario))
  elif verb == "logs":
    print(scenario.get("log", ""))


def answer(scenario, key):
  """Fails where the scenario has an error left for this verb."""
  errors = scenario.get(key) or []
  if errors:
    sys.stderr.write(errors.pop(0) + "\n")
    (PLACE / "scenario.json").write_text(json.dumps(scenario))
    sys.exit(1)


main(sys.argv[1:])
