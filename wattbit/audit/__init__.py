"""The audit log: what a runtime did, in an append-only file whose edits show."""
