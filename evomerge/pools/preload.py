"""What every worker process needs, imported once in the process that they are forked from."""

import lm_eval.api.task
import lm_eval.tasks
import torch
import transformers.models.auto.modeling_auto

import evomerge.fitness.lm_eval_task
import evomerge.merging.resident
import evomerge.pools.worker  # noqa: F401
