"""Reading recorded results, a file for each kind of input. What cannot be read is told in one line."""
