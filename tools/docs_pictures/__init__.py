"""`make docs-pictures`: the pictures of docs/how-it-works.md, from the embedded model."""
