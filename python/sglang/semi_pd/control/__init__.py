# SPDX-License-Identifier: Apache-2.0
"""From measurements to a split: pure functions, without torch or SGLang."""
