"""Everything accepted so far: manifests, split, snapshots, near copies, pixels."""
