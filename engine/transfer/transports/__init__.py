"""Ways to move KV blocks between two pools, a file or a folder each."""
