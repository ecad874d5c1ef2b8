"""Figures, a file for each subject: specifications for Vega-Lite, which draws them without a browser."""
