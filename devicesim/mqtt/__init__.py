"""Announcements: topics, signed events, the outbox, and the brokers that carry them."""
