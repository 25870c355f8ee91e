"""The order of the house."""

# From the ground up: a folder, or a module at the top, imports only from lines before its own. Inside a folder, modules
# import one another freely as long as there is no circle.
ORDER = [
  ["nrt_jax", "arrays", "errors", "files", "rows"],
  ["buckets", "interpreters", "processes"],
  ["objectives", "optimizers", "records", "sharding", "tasks"],
  ["data", "model"],
  ["environments"],
  ["rollout"],
  ["algorithms"],
  ["curricula", "evaluation"],
  ["config"],
  ["step"],
  ["resuming", "workdir"],
  ["startup"],
  ["training"],
  ["harness", "performance", "reporting"],
  ["commands"],
  ["__main__"],
]
