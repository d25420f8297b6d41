"""DHR with masks of every crop at every step."""
