# SPDX-License-Identifier: Apache-2.0
"""The harness's own command; the package has registered the model class by now."""

from lm_eval.__main__ import cli_evaluate

cli_evaluate()
