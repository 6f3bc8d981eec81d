# SPDX-License-Identifier: Apache-2.0
"""`semi-pd doctor`: what on this host keeps a server from starting."""
