"""RARO on DeepMath-103K with Qwen2.5 instruct models (arXiv 2511.21667): final answers only, no verifier.

  command    nrt-jax train --config experiments/full_size/raro_qwen25_deepmath.py --workdir DIR
             --config.model.path=QWEN
             QWEN: a copy of Qwen/Qwen2.5-1.5B-Instruct, -3B-Instruct or -7B-Instruct. The data set is downloaded from
             the hub. To try the pipeline: as in raro_qwen25_countdown.py.
  cost       unknown, not run. The mesh is for 64 TPU v5p chips and has not been tried on them. Tested: the program
             traces and lowers.
  expected   not reproduced. Accuracy in per cent: 1.5B base 30.0, SFT 35.7, rationalization 34.5, iterative DPO 33.0,
             RL-Logit 37.7, RARO 41.3, RLVR 50.9; 7B RARO 57.5, with a tournament of the critic 68.4.

Sources of values: see raro_settings.py. Known departures: the split and the form of the expert's answer are unknown;
here the last 1,000 problems are held out, and the answer is `final_answer`.
"""

import raro_settings


def get_config():
  config = raro_settings.setting()
  data = config.data
  data.source = "hub:zwhe99/DeepMath-103K"  # [ours] its place on the hub
  data.split = "train"  # [ours] the hub's only one
  data.question_column = "question"  # [S10] the card's columns
  data.answer_column = "final_answer"  # [ours] the paper's form is unknown
  data.offset = 1000  # [ours] held out
  config.prompt.max_prompt_length = 1024  # unknown
  config.prompt.max_answer_length = 128  # unknown
  evaluation = config.evaluation
  evaluation.name = "deepmath"  # [ours]
  evaluation.data = {"source": data.source, "answer_column": data.answer_column, "limit": 1000}  # [ours]
  evaluation.grader = "math"  # unknown; the paper's checker was not found
  evaluation.batch_prompts = 256  # [ours]
  return config
