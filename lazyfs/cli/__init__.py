"""Arguments, and what people see. Knows config and service, and nothing below."""
