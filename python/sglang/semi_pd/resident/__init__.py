# SPDX-License-Identifier: Apache-2.0
"""The process that loads the model once and keeps weights and KV cache."""
