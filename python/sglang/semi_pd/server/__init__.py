# SPDX-License-Identifier: Apache-2.0
"""The main process: HTTP, the instance's processes, who gets which message."""
