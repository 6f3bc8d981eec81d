# SPDX-License-Identifier: Apache-2.0
"""A model of an instance, and recorded decisions run again."""
