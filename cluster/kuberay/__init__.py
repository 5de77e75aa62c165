"""Kubernetes manifests for KubeRay and Kueue, and what checks them without a cluster. docs/kubernetes.md says how."""
