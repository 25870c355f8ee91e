"""JobSets: against the published CRD, and against a kubectl that plays their life."""

import pytest
import yaml
from launching import FakeCloud, tpu_run, watch
from paths import DATA

from nrt_jax.errors import UserError
from tpu_launch.engines.gke import Gke
from tpu_launch.engines.job import EngineError

CRD = DATA / "schemas" / "jobset.x-k8s.io_jobsets.yaml"
READY = {"replicatedJobsStatus": [{"name": "slice", "ready": 1}]}
PENDING = {"replicatedJobsStatus": [{"name": "slice", "ready": 0}]}
RUNS = {
  "plain": {},
  "multislice": dict(slices=3, bucket="gs://runs", queue="multislice-queue", capacity="spot"),
  "secrets": dict(secrets={"HF_TOKEN": "hf"}, env={"A": "1"}, service_account="trainer", slice="v5p-8", zone=None),
}


def ended(kind: str, reason: str = "") -> dict:
  return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": "so"}]}


def strict(schema):
  """An OpenAPI schema in which a misspelt key is an error, as the API server's strict validation has it."""
  if isinstance(schema, list):
    return [strict(item) for item in schema]
  if not isinstance(schema, dict):
    return schema
  found = {key: strict(value) for key, value in schema.items()}
  if isinstance(schema.get("properties"), dict) and "type" in schema:
    found.setdefault("additionalProperties", False)
  return found


@pytest.fixture(scope="module")
def validate():
  jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
  if not CRD.exists():
    pytest.skip("the JobSet CRD is not here")
  versions = yaml.safe_load(CRD.read_text())["spec"]["versions"]
  schema = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1alpha2")
  properties = strict(schema["properties"])
  properties["metadata"] = {"type": "object"}  # which the API server knows by itself
  validator = jsonschema.Draft7Validator({"type": "object", "additionalProperties": False, "properties": properties})
  return lambda manifest: [error.message for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_manifests_fit_the_crd(validate, changes):
  manifest = yaml.safe_load(Gke(tpu_run(**changes)).manifest())
  assert not validate(manifest)


def test_the_check_can_fail(validate):
  manifest = Gke(tpu_run()).jobset()
  manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["imag"] = "x"
  manifest["spec"]["failurePolicy"]["rules"][0]["action"] = "Retry"
  assert len(validate(manifest)) == 2


def test_a_slice_is_a_job():
  spec = Gke(tpu_run(**RUNS["multislice"])).jobset()["spec"]
  (job,) = spec["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  assert job["replicas"] == 3 and job["template"]["spec"]["completions"] == 4
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
    "cloud.google.com/gke-tpu-topology": "4x4",
    "cloud.google.com/gke-spot": "true",
  }
  (container,) = pod["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert container["command"][-1] == "--distributed" and "/bucket/run" in container["command"]
  assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "runs"


def test_a_secret_is_named_and_not_shown(monkeypatch):
  monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
  text = "\n".join(map(str, Gke(tpu_run(**RUNS["secrets"])).plan()))
  assert "secretKeyRef" in text and "hf_secret_value" not in text
  assert "serviceAccountName: trainer" in text and "exclusive-topology" not in text and "--distributed" not in text


def test_gcluster_gets_the_same_command():
  text = str(Gke(tpu_run(**RUNS["multislice"])).plan()[-1])
  assert "--compute-type=v6e-16 --topology=4x4 --num-slices=3 --queue=multislice-queue" in text
  assert "'--mount=gs://runs;/bucket'" in text


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(slice="gpu-8", hosts=1), "allowed by gke: a TPU slice"),
    (dict(image=None), "image: found none, needed by gke"),
    (dict(slice="v6e-8", hosts=1), "hosts: found 1, allowed: 2 for v6e:2x4"),
  ],
)
def test_mistakes(change, message):
  with pytest.raises(UserError, match=message):
    Gke(tpu_run(**change)).plan()


# ---- Its life --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  return lambda **scenario: FakeCloud("kubectl", tmp_path, monkeypatch, **scenario)


def verbs(fake) -> list[str]:
  return [call[1] for call in fake.calls() if call[1] not in ("get", "logs")]


def test_to_the_end(cloud, capsys):
  fake = cloud(life=[PENDING, PENDING, {**READY, "restarts": 1}, ended("Completed")])
  assert watch(Gke(tpu_run()), "gke") == 0
  assert verbs(fake) == ["create", "delete"]
  assert yaml.safe_load((fake.place / "manifest.yaml").read_text()) == Gke(tpu_run()).jobset()
  shown = capsys.readouterr().err
  assert "queued: 0 of 1 slices ready" in shown and "running: 1 restarts by JobSet" in shown


def test_a_mistake_is_not_tried_again(cloud):
  fake = cloud(life=[READY, ended("Failed", "FailJobSetFailurePolicyAction")])
  assert watch(Gke(tpu_run()), "gke") == 2 and verbs(fake) == ["create", "delete"]


def test_a_jobset_that_used_up_its_restarts_is_made_anew(cloud):
  fake = cloud(life=[READY, ended("Failed", "ReachedMaxRestarts"), READY, ended("Completed")])
  assert watch(Gke(tpu_run()), "gke") == 0 and verbs(fake) == ["create", "delete", "create", "delete"]


def test_a_stall_makes_it_anew(cloud):
  fake = cloud(life=[READY] * 4 + [ended("Completed")])
  assert watch(Gke(tpu_run(start_seconds=25.0)), "gke") == 0
  assert verbs(fake) == ["create", "delete", "create", "delete"]


def test_what_another_launcher_left_is_taken_up(cloud):
  fake = cloud(life=[READY, READY, ended("Completed")])
  (fake.place / "there").touch()
  assert watch(Gke(tpu_run()), "gke") == 0 and verbs(fake) == ["delete"]


def test_errors_of_the_cluster(cloud):
  fake = cloud(
    life=[READY], create_errors=['error: no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"']
  )
  with pytest.raises(UserError, match="no matches for kind"):
    watch(Gke(tpu_run()), "gke")
  fake = cloud(life=[ended("Completed")], create_errors=["Unable to connect to the server"], delete_errors=["busy"] * 9)
  with pytest.raises(EngineError, match="still exists and may cost money"):
    watch(Gke(tpu_run()), "gke")
  assert verbs(fake).count("create") == 3
