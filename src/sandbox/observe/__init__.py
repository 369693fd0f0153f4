"""Observers of a pool's events: metrics, an audit log, anomaly rules, traces, and the record that `top` reads."""
