"""`nrt-jax report --table NAME [RUN...]`: a paper's tables, with our runs in them."""

import pathlib

from nrt_jax import config
from nrt_jax.commands import configs, output
from nrt_jax.errors import UserError, choices
from nrt_jax.files import write_text
from nrt_jax.reporting import filling, rendering, results, tables

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "tables"  # in a clone of the repository


def run(args) -> None:
  if args.metric:
    raise UserError(f"--metric: found {', '.join(args.metric)} with --table, whose columns are declared, allowed: none")
  file = find(args.table)
  declared = tables.require(configs.call(file, "get_tables", "--table"), str(file))
  found, notes = results.read(args.runs)
  report = filling.fill(declared, file, found, lambda path, over: config.stages_of(configs.load_config(path, over)))
  report = report._replace(notes=notes + report.notes)
  text = rendering.render(report, args.format)
  print(text)
  if args.format == "csv":  # which has no place for them
    for note in report.notes:
      output.note(note)
  if args.output:
    output.make_parent(args.output)
    write_text(args.output, text + "\n")


def find(name: str) -> pathlib.Path:
  """The file of a name of experiments/tables, or of the user. UserError if there is none."""
  if name.endswith(".py"):
    return pathlib.Path(name)
  names = sorted(path.stem for path in FOLDER.glob("*.py") if "def get_tables(" in path.read_text(encoding="utf-8"))
  if name not in names:
    raise UserError(f"--table: {choices(name, [*names, 'FILE.py'])}")
  return FOLDER / f"{name}.py"
