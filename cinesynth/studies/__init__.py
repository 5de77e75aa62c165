"""The paper's questions as studies, and the expert review."""
