"""The tables that people read, a file for each subject. Page and Markdown show the same ones."""
