"""What every worker process needs, imported once in the process that they are forked from."""

# ruff: noqa: F401 - importing them is all that this is for
import transformers.models.auto.modeling_auto
from tqdm.std import TqdmDefaultWriteLock  # type: ignore[import-untyped]

import evomerge.fitness.lm_eval_task
import evomerge.merging.resident
import evomerge.pools.worker

# tqdm makes a semaphore for each process, to keep its bars apart from those of others; a worker
# that is ended in the middle of something leaves it behind. Workers draw no bars.
TqdmDefaultWriteLock.mp_lock = None
