# SPDX-License-Identifier: Apache-2.0
"""SGLang on a host without a GPU."""
