# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode: SGLang's scheduler, twice, and how a request changes hands."""
