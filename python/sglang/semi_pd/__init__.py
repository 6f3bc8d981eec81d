# SPDX-License-Identifier: Apache-2.0
"""Semi-PD for SGLang: prefill and decode as two processes over one KV cache."""
