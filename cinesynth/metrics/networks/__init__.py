"""The networks that metrics run, under torch. What describes them without torch is in the files of their metrics."""
