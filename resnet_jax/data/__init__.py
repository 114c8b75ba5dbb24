# SPDX-License-Identifier: Apache-2.0
"""Pictures: where they are, how they are cropped, batches of them."""
