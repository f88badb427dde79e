"""Graph passes: one rewrite a file, each with its pre- and post-condition."""
