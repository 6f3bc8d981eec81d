# SPDX-License-Identifier: Apache-2.0
"""Before a server starts: is the command line one that it can serve?"""
