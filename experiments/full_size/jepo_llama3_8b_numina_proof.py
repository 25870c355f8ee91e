"""JEPO on Llama-3-8B with Numina-proof: long answers that no verifier can check (arXiv 2503.19618).

  command    nrt-jax train --config experiments/full_size/jepo_llama3_8b_numina_proof.py --workdir DIR
               --config.model.path=LLAMA --config.data.source=numina_proof.jsonl
             LLAMA: a copy of meta-llama/Meta-Llama-3-8B. numina_proof.jsonl: the 58,088 problems of NuminaMath that ask
             for a proof, one per line with question and answer (the proof).
  cost       as jepo_llama3_8b_math.py: unknown, not run. Tested: the program traces and lowers.
  expected   not reproduced. [PAPER] curves only: a lower loss on held-out proofs than SFT at equal epochs; without the
             supervised term, a worse plateau.

Sources, unknowns and departures are those of jepo_llama3_8b_math.py. This file sets what differs for long answers.
"""

import jepo_llama3_8b_math as short


def get_config():
  config = short.get_config()
  config.total_steps = 907  # unknown; one epoch
  config.data.source = "numina_proof.jsonl"  # given by the user; [PAPER] Numina-proof, 58,088 problems
  config.prompt.max_answer_length = 1024  # unknown
  config.algorithm.answer_coef = 1.0  # [PAPER] β_sup: long answers need 1
  config.parallel.micro_batches = 8  # [ours] two rows at a time in each device group
  return config
