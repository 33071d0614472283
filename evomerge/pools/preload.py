"""What every worker process needs, imported once in the process that they are forked from."""

# ruff: noqa: F401 - importing them is all that this is for
import transformers.models.auto.modeling_auto

import evomerge.fitness.lm_eval_task
import evomerge.merging.resident
import evomerge.pools.worker
