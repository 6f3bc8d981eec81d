# SPDX-License-Identifier: Apache-2.0
"""Which block belongs to whom, and the memory that several processes map."""
