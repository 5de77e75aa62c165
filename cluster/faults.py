"""Time-outs of Ray that say how soon a fault is noticed. docs/faults.md tells what each is good for."""

from __future__ import annotations

PROCESS_TIMEOUTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A replica that hangs is killed: Serve would let it end its work first, beside the one that takes its place.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # three in a row: a dead proxy is replaced after seconds
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
}
"""Environment variables of every head, and of the jobs on it: how soon a process that died or hangs is noticed."""
HEAD_TIMEOUTS = {
    **PROCESS_TIMEOUTS,
    # A node that does not answer is given up after (period + time-out) x threshold: 18 s in place of Ray's 65.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    # Workers that have no room any more wait for a node to come (back), before that counts as another failure.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
}
"""Those of the head of several nodes."""
