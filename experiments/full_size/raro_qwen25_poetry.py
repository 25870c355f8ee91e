"""RARO on poems with Qwen2.5 instruct models (arXiv 2511.21667): expert poems, which nobody can verify.

  command    nrt-jax train --config experiments/full_size/raro_qwen25_poetry.py --workdir DIR
             --config.model.path=QWEN --config.data.source=ROWS
             QWEN: a copy of Qwen/Qwen2.5-1.5B-Instruct, -3B-Instruct or -7B-Instruct. ROWS: a file with the columns
             `prompt` and `poem`; the paper's data set was not found. To try the pipeline: as in
             raro_qwen25_countdown.py.
  cost       unknown, not run. The mesh is for 64 TPU v5p chips and has not been tried on them. Tested: the program
             traces and lowers.
  judging    nrt-jax judge, with poem_pairwise.txt and poem_score.txt in this directory: docs/raro.md
  expected   not reproduced, and not measured here: the paper's judge is another model. Win rate of 7B against the
             expert's poems: RARO 25.0 per cent, best baseline 5.9.

Sources of values: see raro_settings.py.
"""

import raro_settings


def get_config():
  config = raro_settings.setting()
  data = config.data
  data.source = "poems.jsonl"  # given by the user
  data.question_column = "prompt"  # [ours]
  data.answer_column = "poem"  # [ours]
  config.prompt.max_prompt_length = 256  # [ours]
  config.prompt.max_answer_length = 512  # [ours]
  config.prompt.overlong_answer = "drop"  # unknown
  return config
