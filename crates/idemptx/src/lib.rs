//! Makes HTTP APIs safe to retry.
