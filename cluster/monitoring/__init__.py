"""Watching a cluster: dashboards for Grafana, alerts and scraping for Prometheus (`docs/monitoring.md`)."""
