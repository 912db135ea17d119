"""Labels: what a template says of a unit, as ZPL for a label printer and as PNG for an eye.

template (text with named fields) + fields of a unit → label → ZPL, PNG → printer
"""
