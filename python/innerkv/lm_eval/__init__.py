# SPDX-License-Identifier: Apache-2.0
"""The model class "innerkv" of EleutherAI's lm-evaluation-harness.

    python -m innerkv.lm_eval --model innerkv --model_args pretrained=NAME,preset=base --tasks ...

is the harness's command `lm_eval` with that class in its registry, which knows no plugins. In Python, import this
module before lm_eval.simple_evaluate(model="innerkv", ...).
"""

from .model import InnerKVLM

__all__ = ["InnerKVLM"]
