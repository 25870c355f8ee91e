"""`nrt-jax benchmark`: config file -> RunConfigs -> benchmark.benchmark, as text and JSON."""

from nrt_jax import config
from nrt_jax.commands import configs, output
from nrt_jax.files import write_json
from nrt_jax.performance import benchmark, report


def run(args) -> None:
  runs = config.stages_of(configs.load_config(args.config, args.overrides))
  output.check_file(args.json, "--json")
  if args.profile is not None:
    output.check_directory(args.profile, "--profile")
  measured = benchmark.benchmark(runs, args.stage, args.repeats, args.profile, lambda found: write(args.json, found))
  print(report.text(measured))
  write(args.json, measured)


def write(path: str | None, measured: dict) -> None:
  if path is not None:
    output.make_parent(path)
    write_json(path, measured)
