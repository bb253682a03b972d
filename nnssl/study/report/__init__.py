"""A study's report: tables (CSV), plots (SVG) and one HTML page, made from results.jsonl alone."""
