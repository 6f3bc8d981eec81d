# SPDX-License-Identifier: Apache-2.0
"""Dividing the GPU's SMs, or the host's cores, between the two roles."""
