# SPDX-License-Identifier: Apache-2.0
"""Readers of containers, each written once, for weights and data.

Threat model: the author of a file wants to run code, to read or write outside
the file, to make the program take memory or time out of all proportion to the
file's size, or to pass a damaged file off as a whole one.  So a reader calls
nothing that a file names, follows no link, holds each stated size against the
bytes that are there before it allocates, and reports what is wrong in one
UserError (`faults`).  SECURITY.md has all of it, with what is out of scope.
"""
