"""The factory line: a batch of units in, a ledger of identities out, nothing twice and nothing lost."""
