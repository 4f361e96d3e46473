"""Annotators with a tool or a vendor of their own: work goes out as files, and comes back as files."""
