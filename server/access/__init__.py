"""Who is let in to the REST API: bearer tokens, and what failed attempts cost."""
