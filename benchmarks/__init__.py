"""One script a headline number; each ends with one line of JSON."""
