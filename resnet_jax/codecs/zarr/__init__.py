# SPDX-License-Identifier: Apache-2.0
"""Arrays of Zarr 3 in chunks with checksums, which features and crops share."""
