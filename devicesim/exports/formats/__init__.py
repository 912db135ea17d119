"""One module a format; a module with a `FORMAT` in it is one."""
