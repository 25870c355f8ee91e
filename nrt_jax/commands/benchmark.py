"""`nrt-jax benchmark`: config file -> RunConfigs -> benchmark.benchmark, as text and JSON."""

from nrt_jax import benchmark, benchmark_report, config
from nrt_jax.commands import configs, output
from nrt_jax.files import write_json


def run(args) -> None:
  runs = config.stages_of(configs.load_config(args.config, args.overrides))
  output.check_file(args.json, "--json")
  if args.profile is not None:
    output.check_directory(args.profile, "--profile")
  report = benchmark.benchmark(runs, args.stage, args.repeats, args.profile)
  print(benchmark_report.text(report))
  if args.json:
    output.make_parent(args.json)
    write_json(args.json, report)
