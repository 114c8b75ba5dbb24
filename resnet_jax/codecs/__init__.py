# SPDX-License-Identifier: Apache-2.0
"""Readers of containers, each written once, for weights and data.

SECURITY.md has the threat model.  A reader calls nothing that a file names,
follows no link, compares each stated size with the bytes that exist before it
allocates, and reports a fault in one UserError (`faults`).
"""
