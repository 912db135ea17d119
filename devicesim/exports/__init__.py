"""What a line made, in the forms that others take it in: signed manifests, and files for the clouds."""
