# SPDX-License-Identifier: Apache-2.0
"""Images: where they are, how they are cropped, batches of them."""
