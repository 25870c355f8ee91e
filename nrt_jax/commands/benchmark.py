"""`nrt-jax benchmark`: config file -> RunConfigs -> benchmark.benchmark, as text and JSON."""

import os

from nrt_jax import benchmark, benchmark_report, config
from nrt_jax.commands import configs
from nrt_jax.commands.train import check_writable
from nrt_jax.files import write_json


def run(args) -> None:
  runs = config.stages_of(configs.load_config(args.config, args.overrides))
  json_path = args.json and os.path.abspath(args.json)
  for flag, directory in (("--json", json_path and os.path.dirname(json_path)), ("--profile", args.profile)):
    if directory:
      check_writable(os.path.abspath(directory), flag)
  report = benchmark.benchmark(runs, args.stage, args.repeats, args.profile)
  print(benchmark_report.text(report))
  if json_path:
    os.makedirs(os.path.dirname(json_path), exist_ok=True)
    write_json(json_path, report)
