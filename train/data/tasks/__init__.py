"""Generated sequences with answers: one task a file; `kind: "foo"` of a source is tasks/foo.py."""
