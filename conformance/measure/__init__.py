"""What the suite itself is worth: which mutants it kills, how often it is wrong, how small an error it sees."""
